"""The promises of patch, unpatch, patched, report and explain, apart from what they do to the tokens."""

import json
import pickle
import re

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
    MiniMaxConfig,
    RemBertConfig,
    RemBertForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import hf_infeco
from hf_infeco import CACHE_NAME, InfecoConfig, InnerQConfig, S2OConfig

from .families import DEVICE, FAMILIES, TINY, build, prompt
from .settings import EXACT, LOSSY


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_what_the_list_promises_and_a_reason_for_the_rest(family):
    model = build(family)
    report = hf_infeco.report(hf_infeco.patch(model))
    assert report.status("s2o") == FAMILIES[family].s2o
    assert report.status("innerq") == FAMILIES[family].innerq
    for entry in report.areas:
        assert entry.detail and entry.layers != "-"
    assert report.areas == hf_infeco.explain(build(family)).areas
    assert report.areas == hf_infeco.explain(model.config).areas
    json.dumps(report.to_dict())


def test_the_report_reads_as_a_table():
    text = str(hf_infeco.explain(build("gemma3")))
    assert "window or chunk of 16 tokens" in text
    assert "0-1" in text and "bytes per token" in text


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reported_bytes_per_token_are_those_a_cache_grows_by(family):
    """Over 2048 tokens, so that the spare room of packed buffers averages out; windows have a constant size."""
    model = build(family)
    model.config.max_position_embeddings = 8192
    report = hf_infeco.explain(model)
    assert grown_by(model, 32) == report.kv_bytes_per_token_before
    with hf_infeco.patched(model, s2o=False):
        assert grown_by(model, 2048) == pytest.approx(report.kv_bytes_per_token_after, rel=0.08)


def grown_by(model, tokens):
    """Bytes per token by which the cache of a longer prompt is larger."""
    sizes = []
    for length in (200, 200 + tokens):
        with torch.no_grad():
            cache = model(prompt(1, length), use_cache=True)[CACHE_NAME]
            model(prompt(1, 1), **{CACHE_NAME: cache})  # sliding layers hold their whole prompt until the next step
        sizes.append(hf_infeco.cache_nbytes(cache))
    return (sizes[1] - sizes[0]) / tokens


def test_patching_twice_is_patching_once_and_the_last_settings_win():
    model = hf_infeco.patch(build("llama"))
    assert hf_infeco.patch(model, innerq="small") is model
    assert len(model.model._forward_pre_hooks) == 1
    assert "3 bits per number" in str(hf_infeco.report(model))
    hf_infeco.unpatch(model)
    assert not model.model._forward_pre_hooks
    assert not [name for module in model.modules() for name in vars(module) if "infeco" in name]


def test_unpatching_an_unpatched_model_is_harmless():
    model = build("llama")
    assert hf_infeco.unpatch(model) is model
    assert hf_infeco.report(model).status("s2o") == {"off"}


def test_patched_restores_on_an_exception_and_nests():
    model = build("llama")
    with pytest.raises(KeyError), hf_infeco.patched(model):
        raise KeyError
    assert hf_infeco.report(model).status("s2o") == {"off"}
    hf_infeco.patch(model, s2o=False)
    with hf_infeco.patched(model, innerq=False):
        assert hf_infeco.report(model).status("innerq") == {"off"}
    assert hf_infeco.report(model).status("innerq") == {"enabled"}
    assert hf_infeco.report(model).status("s2o") == {"off"}


def test_keyword_shortcuts_win_over_the_config():
    model = hf_infeco.patch(build("llama"), InfecoConfig(s2o=S2OConfig(tau=0.5)), s2o={"tau": 0.25}, innerq=None)
    report = hf_infeco.report(model)
    assert "tau=0.25" in str(report) and report.status("innerq") == {"off"}


@pytest.mark.parametrize("wrong", [torch.nn.Linear(2, 2), "gpt2", None])
def test_patching_what_is_no_transformers_model_says_so(wrong):
    with pytest.raises(TypeError, match="PreTrainedModel"):
        hf_infeco.patch(wrong)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"config": {"s2o": None}}, TypeError, "InfecoConfig"),
        ({"kivi": True}, ValueError, "kivi.*innerq"),
        ({"innerq": "huge"}, ValueError, "huge.*small"),
        ({"innerq": 3}, ValueError, "InnerQConfig"),
        ({"s2o": {"tau": 2.0}}, ValueError, "tau=2.0"),
    ],
)
def test_a_wrong_setting_is_refused_and_changes_nothing(arguments, error, message):
    model = hf_infeco.patch(build("llama"), innerq="small")
    before = hf_infeco.report(model)
    with pytest.raises(error, match=message):
        hf_infeco.patch(model, **arguments)
    assert hf_infeco.report(model) == before


def t5():
    sizes = dict(vocab_size=50, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))


def bert():
    sizes = dict(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    return BertModel(BertConfig(**sizes))


def rembert():
    sizes = dict(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    return RemBertForCausalLM(RemBertConfig(**sizes, input_embedding_size=16))


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, state_size=4))


@pytest.mark.parametrize(
    "make, reason",
    [
        (t5, "encoder-decoder"),
        (bert, "not causal"),
        (rembert, "not causal"),
        (mamba, "none of its layers|no self-attention module"),
    ],
)
def test_a_model_that_nothing_is_for_is_left_alone_with_a_reason(make, reason):
    model = make().eval()
    implementation = model.config._attn_implementation
    report = hf_infeco.report(hf_infeco.patch(model))
    assert report.status("s2o") == report.status("innerq") == {"unsupported"}
    assert re.search(reason, str(report))
    assert model.config._attn_implementation == implementation
    assert not any("infeco" in name for module in model.modules() for name in vars(module) if name != "_infeco_state")


def test_a_base_model_without_a_head_is_patched_too():
    model = build("llama").model
    ids = prompt(1, 80)
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        out = hf_infeco.patch(model)(ids)
    assert type(out[CACHE_NAME]) is hf_infeco.InnerQCache
    torch.testing.assert_close(out.last_hidden_state, expected, rtol=1e-4, atol=1e-4)


def test_the_language_model_of_a_composite_model_is_patched_and_its_vision_tower_is_not():
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = LlavaConfig(vision_config=vision, text_config=build("llama").config, image_token_index=100)
    model = LlavaForConditionalGeneration(config).eval().to(DEVICE)
    kwargs = dict(max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    expected = model.generate(prompt(1, 60), **kwargs).sequences
    hf_infeco.patch(model, innerq=InnerQConfig(recent=1000))
    got = model.generate(prompt(1, 60), **kwargs)
    assert torch.equal(got.sequences, expected)
    assert type(got[CACHE_NAME]) is hf_infeco.InnerQCache
    assert model.config.text_config._attn_implementation == "infeco"
    assert model.config.vision_config._attn_implementation != "infeco"
    hf_infeco.unpatch(model)
    assert model.config.text_config._attn_implementation == "sdpa"


def test_an_argument_that_nobody_implements_is_refused_aloud():
    model = hf_infeco.patch(build("llama"))
    with pytest.raises(ValueError, match="block_indices"):
        model(prompt(1, 8), block_indices=[0])


def test_saving_a_patched_model_saves_the_original(tmp_path):
    model = hf_infeco.patch(build("llama"))
    model.save_pretrained(tmp_path)
    assert "infeco" not in (tmp_path / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert hf_infeco.report(again).status("s2o") == {"off"}
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_gradients_reach_the_weights_of_a_patched_model():
    model, reference = hf_infeco.patch(build("llama"), s2o=S2OConfig(tau=0.3, crossover=1)), build("llama")
    ids = prompt(2, 60)
    for each in (model, reference):
        each.train()
        each(ids, labels=ids).loss.backward()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_innerq_config_is_used_by_the_bare_forward():
    model = hf_infeco.patch(build("llama"), innerq=InnerQConfig(sink=2, recent=4))
    with torch.no_grad():
        cache = model(prompt(1, 50))[CACHE_NAME]
    assert type(cache) is hf_infeco.InnerQCache and cache.innerq.sink == 2


@pytest.mark.parametrize("training", [False, True])
def test_autocast_works_as_before(training):
    """Regression: rotary embeddings leave float32 queries beside bfloat16 values."""
    model = build("llama").train(training)
    ids = prompt(1, 60)

    def loss():
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            return model(ids, labels=ids, use_cache=False).loss

    expected = loss()
    with hf_infeco.patched(model, LOSSY["all"] if training else EXACT["all"]):
        torch.testing.assert_close(loss(), expected, rtol=1e-2, atol=1e-2)


def test_packed_decoding_under_autocast():
    model = hf_infeco.patch(build("llama"), LOSSY["innerq-base"])
    expected = model.generate(prompt(1, 60), max_new_tokens=1, do_sample=False)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = model.generate(prompt(1, 60), max_new_tokens=4, do_sample=False, output_logits=True)
    assert torch.equal(out[:, :60], expected[:, :60]) and out.shape == (1, 64)


def test_models_that_share_a_config_are_told_apart():
    config = build("llama").config
    first, second = AutoModelForCausalLM.from_config(config), AutoModelForCausalLM.from_config(config)
    second.config = second.model.config = first.config = first.model.config = config
    hf_infeco.patch(first)
    with pytest.raises(ValueError, match=r"config .* is that of a patched model.*deepcopy"):
        hf_infeco.patch(second)
    hf_infeco.unpatch(first)
    assert config._attn_implementation == "sdpa"
    hf_infeco.patch(second)


def test_a_patch_that_fails_is_taken_back():
    class Odd(type(build("llama"))):
        def _prepare_cache_for_generation(self, something, else_):
            return None

    model = Odd(build("llama").config)
    with pytest.raises(RuntimeError, match="InnerQCache"):
        hf_infeco.patch(model)
    assert model.config._attn_implementation == "sdpa"
    assert hf_infeco.report(model).status("s2o") == {"off"}
    assert not [name for module in model.modules() for name in vars(module) if "infeco" in name]


def test_prefix_tuning_goes_on_working():
    torch.manual_seed(0)
    model = get_peft_model(build("llama"), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    kwargs = dict(input_ids=prompt(1, 30), max_new_tokens=5, do_sample=False)
    try:
        expected = model.generate(**kwargs)
    except FutureWarning as warning:
        pytest.skip(f"this peft passes caches in a way that this transformers deprecates: {warning}")
    hf_infeco.patch(model)
    assert torch.equal(model.generate(**kwargs), expected)


def test_a_patched_model_survives_pickling():
    model = hf_infeco.patch(build("llama"), LOSSY["innerq-base"])
    kwargs = dict(max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    expected = model.generate(prompt(1, 60), **kwargs)
    again = pickle.loads(pickle.dumps(model)).generate(prompt(1, 60), **kwargs)
    assert torch.equal(again.sequences, expected.sequences)
    assert type(again[CACHE_NAME]) is hf_infeco.InnerQCache


def test_asking_for_attention_weights_is_refused_aloud():
    model = hf_infeco.patch(build("llama"))
    with pytest.raises(ValueError, match=r"attention weights.*unpatch"):
        model(prompt(1, 8), output_attentions=True)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_trains_the_dense_model(use_reentrant):
    losses = []
    for config in (None, LOSSY["all"]):
        model = build("llama")
        if config is not None:
            hf_infeco.patch(model, config)
        # Renamed in 5.23, where the old name is deprecated.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": use_reentrant})
        model.train()
        model.enable_input_require_grads()
        ids = prompt(1, 60)
        losses.append(model(ids, labels=ids).loss)
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0])


def test_exact_tokens_of_a_reused_cache_keep_their_gradient():
    grads = []
    for config in (None, InnerQConfig(sink=4, recent=1000)):
        model = build("llama")
        if config is not None:
            hf_infeco.patch(model, s2o=False, innerq=config)
        cache = model(prompt(1, 100))[CACHE_NAME]
        model(prompt(1, 4), **{CACHE_NAME: cache}).logits.square().sum().backward()
        grads.append(model.model.layers[0].self_attn.k_proj.weight.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-3, atol=1e-3)


def test_an_attention_chosen_after_patching_is_kept_and_reported():
    model = hf_infeco.patch(build("llama"))
    model.set_attn_implementation("eager")
    report = hf_infeco.report(model)
    assert report.status("s2o") == {"unsupported"} and report.status("innerq") == {"fallback"}
    assert "'eager' after patching" in str(report)
    hf_infeco.unpatch(model)
    assert model.config._attn_implementation == "eager"


def test_a_prefill_that_cannot_be_sparse_shows_in_the_density():
    model = hf_infeco.patch(build("llama"), LOSSY["s2o"])
    mask = torch.ones_like(prompt(2, 60))
    mask[1, 40:] = 0  # right padding: not the suffix that S2O knows
    with torch.no_grad():
        model(prompt(2, 60), attention_mask=mask, use_cache=False)
    assert hf_infeco.report(model).s2o.density == 1


def test_explain_reads_the_config_of_any_kind_of_model():
    assert hf_infeco.explain(T5Config()).status("s2o") == {"unsupported"}
    assert hf_infeco.explain(LlavaConfig(text_config=build("llama").config)).status("innerq") == {"enabled"}


def test_a_model_that_makes_its_own_cache_keeps_it():
    config = MiniMaxConfig(
        **{**TINY, "num_local_experts": 2, "num_experts_per_tok": 1},
        layer_types=["full_attention", "linear_attention"],
    )
    model = AutoModelForCausalLM.from_config(config).eval().to(DEVICE)
    assert hf_infeco.report(hf_infeco.patch(model)).status("innerq") == {"unsupported"}
    assert model.generate(prompt(1, 9), max_new_tokens=3).shape == (1, 12)
