"""In its exact setting a patched model is the model: every family, every way of generating, token for token."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import hf_infeco

from .behaviours import BEHAVIOURS, greedy, pad_left, run
from .families import FAMILIES, build, prompt
from .settings import EXACT


def assert_same(got, expected):
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("family", FAMILIES)
def test_patched_in_the_exact_setting_equals_unpatched(family, behaviour):
    model = build(family)
    expected = BEHAVIOURS[behaviour](model)
    for name, config in EXACT.items():
        with hf_infeco.patched(model, config):
            got = BEHAVIOURS[behaviour](model)
        try:
            assert_same(got, expected)
        except AssertionError as error:
            raise AssertionError(f"setting {name!r}: {error}") from None


@pytest.mark.parametrize("family", FAMILIES)
def test_unpatched_again_is_bit_exact(family):
    model = build(family)
    expected = greedy(model)
    with hf_infeco.patched(model, EXACT["all"]):
        greedy(model)
    got = greedy(model)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_more_padding_changes_nothing(family):
    model = hf_infeco.patch(build(family), EXACT["all"])
    ids = prompt(2, 40)
    expected = run(model, ids)
    padded, mask = pad_left(ids, 21)
    got = run(model, padded, attention_mask=mask)
    assert torch.equal(got[0][:, -12:], expected[0][:, -12:])
    torch.testing.assert_close(got[1], expected[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_assisted_decoding_rolls_the_cache_back(family):
    model, assistant = build(family), build(family, seed=5)
    # Mostly the model itself: the assistant must be right often enough to be rolled back in the middle of a draft.
    assistant.load_state_dict({k: 0.95 * v + 0.05 * assistant.state_dict()[k] for k, v in model.state_dict().items()})
    expected = run(model, prompt(1, 60), max_new_tokens=24)
    hf_infeco.patch(model, EXACT["all"])
    hf_infeco.patch(assistant, EXACT["all"])
    got = run(model, prompt(1, 60), max_new_tokens=24, assistant_model=assistant)
    assert torch.equal(got[0], expected[0])


def lora(model):
    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt_oss"])
@pytest.mark.parametrize("order", ["patch, then PEFT", "PEFT, then patch"])
def test_patch_and_peft_in_either_order(family, order):
    expected = greedy(lora(build(family)))
    model = build(family)
    if order == "patch, then PEFT":
        model = lora(hf_infeco.patch(model, EXACT["all"]))
    else:
        model = hf_infeco.patch(lora(model), EXACT["all"])
    assert hf_infeco.report(model).status("innerq") != {"off"}
    assert_same(greedy(model), expected)
    hf_infeco.unpatch(model)
    assert hf_infeco.report(model).status("innerq") == {"off"}
    assert_same(greedy(model), expected)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_deepcopy_is_patched_and_unpatched_on_its_own(family):
    model = hf_infeco.patch(build(family), EXACT["all"])
    expected = greedy(model)
    twin = copy.deepcopy(model)
    assert_same(greedy(twin), expected)
    assert hf_infeco.report(twin).areas == hf_infeco.report(model).areas
    hf_infeco.unpatch(model)
    assert hf_infeco.report(twin).status("s2o") != {"off"}
    hf_infeco.unpatch(twin)
    assert_same(greedy(twin), expected)


def test_a_second_model_of_the_same_class_is_untouched():
    other = build("llama", seed=9)
    expected = greedy(other)
    model = hf_infeco.patch(build("llama"))
    got = greedy(other)
    assert torch.equal(got[1], expected[1])
    assert other.config._attn_implementation != model.config._attn_implementation
    assert not other.model._forward_pre_hooks


def test_a_patched_model_may_change_its_dtype():
    model = build("llama")
    expected = greedy(model.to(torch.bfloat16))
    model = hf_infeco.patch(build("llama"), EXACT["all"]).to(torch.bfloat16)
    logits = greedy(model)[1]
    assert logits.dtype == expected[1].dtype
    torch.testing.assert_close(logits[0], expected[1][0], rtol=0.05, atol=0.05)
