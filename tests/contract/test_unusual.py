"""What a patch does to models that it does not expect: nothing wrong, and a report that says so."""

import gc

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, DynamicCache
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

import hf_infeco
from hf_infeco import CACHE_NAME, InnerQCache, InnerQConfig, compat
from hf_infeco.kv import KVView

from .behaviours import OnPackedCache, greedy, left_padding, two_turns
from .families import DEVICE, TINY, UNUSUAL, build, prompt
from .settings import EXACT, LOSSY

USES = {function.__name__: function for function in (greedy, left_padding, two_turns)}
MODELS_AS_PROMISED = Version("5.23.0")  # the code of some models was another before
PACKED = LOSSY["innerq"].innerq
ALL_TYPES = sorted({**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, **MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("family", UNUSUAL)
def test_patched_in_the_exact_setting_equals_unpatched(family, use):
    model = build(family)
    try:
        expected = USES[use](model)
    except RuntimeError as error:
        pytest.skip(f"this transformers cannot do it, unpatched: {error}")
    hf_infeco.patch(model, EXACT["all"])
    got = USES[use](model)
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1], rtol=1e-3, atol=1e-3)
    hf_infeco.unpatch(model)
    again = USES[use](model)
    assert torch.equal(again[1], expected[1])


@pytest.mark.parametrize("family", [name for name, each in UNUSUAL.items() if each.innerq != {"unsupported"}])
@pytest.mark.parametrize("use", ["greedy", "left_padding"])
def test_attending_packed_equals_dequantizing_first(family, use):
    model = build(family)
    expected = USES[use](OnPackedCache(model, PACKED))
    got = USES[use](hf_infeco.patch(model, s2o=False, innerq=PACKED))
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("family", UNUSUAL)
def test_the_report_says_before_the_first_run_what_it_says_after(family):
    model = build(family)
    planned = hf_infeco.explain(model)
    if compat.INSTALLED >= MODELS_AS_PROMISED:
        assert planned.status("s2o") == UNUSUAL[family].s2o
        assert planned.status("innerq") == UNUSUAL[family].innerq
    greedy(hf_infeco.patch(model))
    assert hf_infeco.report(model).areas == planned.areas


@pytest.mark.parametrize("model_type", ALL_TYPES)
def test_explain_reads_every_default_config(model_type):
    try:
        config = AutoConfig.for_model(model_type)
    except Exception as error:
        pytest.skip(f"transformers {transformers.__version__} cannot make this config: {error}")
    report = hf_infeco.explain(config)
    assert report.status("s2o") and report.status("innerq") and str(report)


def test_the_report_names_the_cache_that_the_last_forward_ran_on():
    """Regression: transformers 5.24 renamed the argument, InnerQ did nothing, and the report said enabled."""
    model = hf_infeco.patch(build("llama"), s2o=False, innerq=PACKED)
    out = model.generate(prompt(1, 60), max_new_tokens=3, return_dict_in_generate=True)
    assert type(out[CACHE_NAME]) is InnerQCache
    assert hf_infeco.report(model).status("innerq") == {"enabled"}
    model.generate(prompt(1, 60), max_new_tokens=3, **{CACHE_NAME: DynamicCache(config=model.config)})
    report = hf_infeco.report(model)
    assert report.status("innerq") == {"fallback"} and "DynamicCache" in str(report)
    with torch.no_grad():
        model(prompt(1, 60))
    assert hf_infeco.report(model).status("innerq") == {"enabled"}


def test_decode_steps_that_cannot_be_attended_packed_show_in_the_report():
    model = hf_infeco.patch(build("llama"), s2o=False, innerq=PACKED)
    with torch.no_grad():
        cache = model(prompt(1, 60))[CACHE_NAME]
        mask = torch.ones(1, 1, 2, 62, dtype=torch.bool, device=model.device).tril(60)
        model(prompt(1, 2), attention_mask=mask, **{CACHE_NAME: cache})  # any 4-D mask of a user's
    report = hf_infeco.report(model)
    assert report.status("innerq") == {"fallback"} and "dequantized at each step" in str(report)


@pytest.mark.parametrize("patched, turn", [(False, 1), (True, 64)])
def test_dequantized_tensors_go_with_their_layer_without_the_cycle_collector(patched, turn):
    """Regression: 55 MB were alive where one layer was 1.5 MB, because views and their handles held one another."""
    model = build("llama")
    cache = InnerQCache(model.config, PACKED)
    if patched:
        hf_infeco.patch(model, s2o=False, innerq=PACKED)
    with torch.no_grad():
        model(prompt(1, 300), **{CACHE_NAME: cache})
        gc.collect()
        earlier = [each for each in gc.get_objects() if isinstance(each, KVView)]  # what a failed test has left, say
        gc.disable()
        try:
            for seed in range(3):
                model(prompt(1, turn, seed), **{CACHE_NAME: cache})
            alive = [each for each in gc.get_objects() if isinstance(each, KVView) and each not in earlier]
        finally:
            gc.enable()
    assert not alive


def test_a_mask_that_is_too_short_hides_what_it_does_not_speak_of():
    model = build("llama")
    results = []
    for config in (None, EXACT["all"]):
        if config is not None:
            hf_infeco.patch(model, config)
        with torch.no_grad():
            cache = model(prompt(1, 50))[CACHE_NAME]
            short = torch.ones(1, 52, dtype=torch.long, device=model.device)
            results.append(model(prompt(1, 5), attention_mask=short, **{CACHE_NAME: cache}).logits[:, :2])
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-3)


def test_the_report_says_what_a_length_costs():
    model = build("llama").to(torch.bfloat16)
    config = InnerQConfig(key_bits=4, value_bits=3, sink=32, recent=96)
    with hf_infeco.patched(model, s2o=False, innerq=config):
        for length in (100, 200, 500):
            report = hf_infeco.report(model, num_tokens=length)
            with torch.no_grad():
                cache = model(prompt(1, length))[CACHE_NAME]
            assert report.kv_bytes_before == 2 * 2 * 2 * 32 * 2 * length  # keys and values, layers, heads, dim, bytes
            # What is spare in a buffer and the keys' means and norms come on top.
            assert 0.85 * cache.nbytes <= report.kv_bytes_after <= cache.nbytes
            assert f"{length:,} tokens" in str(report)
    with pytest.raises(ValueError, match="num_tokens=0"):
        hf_infeco.explain(model, num_tokens=0)


def test_windows_that_cover_the_whole_context_gain_nothing_and_the_report_says_so():
    report = hf_infeco.explain(build("llama"), innerq=InnerQConfig(recent=100_000))
    assert report.kv_bytes_per_token_after == report.kv_bytes_per_token_before
    assert "exact, because its windows cover the 4096 tokens" in str(report)


def test_cross_attention_is_left_alone_and_its_cache_stays_plain():
    """Regression: without a mask it was taken for causal, and logits were off by 6.9."""
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    fields = {**TINY, "num_hidden_layers": 3, "hidden_size": 128, "rope_parameters": rope}
    config = MllamaTextConfig(**fields, cross_attention_layers=[1])
    torch.manual_seed(0)
    model = transformers.MllamaForCausalLM(config).eval().to(DEVICE)
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):
            torch.nn.init.constant_(parameter, 0.7)  # they start shut
    image = torch.randn(2, 20, 128, device=DEVICE)

    def logits():
        with torch.no_grad():
            first = model(prompt(2, 60), cross_attention_states=image, use_cache=True)
            second = model(prompt(2, 3), use_cache=True, **{CACHE_NAME: first[CACHE_NAME]})
        return torch.cat([first.logits, second.logits], 1), first[CACHE_NAME]

    expected, _ = logits()
    hf_infeco.patch(model, EXACT["all"])
    torch.testing.assert_close(logits()[0], expected, rtol=1e-3, atol=1e-3)
    hf_infeco.patch(model, s2o=False, innerq=PACKED)
    _, cache = logits()
    assert type(cache) is InnerQCache
    assert [type(layer).__name__ for layer in cache.layers] == ["InnerQLayer", "CrossAttentionLayer", "InnerQLayer"]
    assert "cross-attention" in str(hf_infeco.report(model))


def test_the_report_says_that_fewer_bits_than_the_defaults_cost_accuracy():
    model = build("llama")
    assert "docs/real.md" in str(hf_infeco.explain(model, innerq="small"))
    assert "docs/real.md" not in str(hf_infeco.explain(model))


def test_unknown_arguments_of_a_custom_model_leave_its_attention_alone():
    llama = type(build("llama"))
    attention = transformers.models.llama.modeling_llama.LlamaAttention

    class Selecting(attention):
        def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
            attend = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, None
            )
            q, k, v = (each(hidden_states).unflatten(-1, (-1, 32)).transpose(1, 2) for each in self.projections)
            return attend(self, q, k, v, attention_mask, scaling=self.scaling, chosen_blocks=[0])

    model: llama = build("llama")
    for layer in model.model.layers:
        layer.self_attn.__class__ = Selecting
    report = hf_infeco.report(hf_infeco.patch(model))
    assert report.status("s2o") == {"unsupported"} and "chosen_blocks" in str(report)
    assert model.config._attn_implementation == "sdpa"
