"""The heads that the benchmark captures are those with which the model attends."""

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from hf_infeco.benchmarks.measuring import MODEL
from hf_infeco.benchmarks.real.reader import Reader
from hf_infeco.benchmarks.s2o.inputs import (
    Captor,
    capture,
    full_attention_layers,
    generated,
    heads_by_layer,
    real_heads,
)
from hf_infeco.benchmarks.s2o.operator import dense, distance, sparse


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=97,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def captor():
    return Captor(MODEL, "cpu")


def test_attending_the_captured_heads_gives_what_the_layers_gave(model):
    given = {}
    hooks = [
        layer.self_attn.register_forward_hook(lambda module, _, out: given.update({module.layer_idx: out[0]}))
        for layer in model.model.layers
    ]
    captured = capture(model, torch.randint(97, (1, 50), generator=torch.Generator().manual_seed(0)))
    for hook in hooks:
        hook.remove()
    assert list(captured) == [0, 1, 2]
    for index, heads in captured.items():
        with torch.no_grad():
            out = model.model.layers[index].self_attn.o_proj(dense(heads).transpose(1, 2).flatten(2))
        torch.testing.assert_close(out, given[index])


def test_capturing_leaves_the_model_as_it_was(model):
    ids = torch.arange(20)[None]
    before = model.config._attn_implementation, model(ids).logits
    capture(model, ids)
    assert model.config._attn_implementation == before[0]
    assert torch.equal(model(ids).logits, before[1])


def test_layers_lie_side_by_side_as_heads(captor):
    both, last = captor.heads(256, seed=0, last=2), captor.heads(256, seed=0, last=1)
    assert both.query.shape == (1, 8, 256, 64) and both.key.shape == both.value.shape == (1, 4, 256, 64)
    assert torch.equal(both.query[:, 4:], last.query) and torch.equal(both.key[:, 2:], last.key)
    assert captor.heads(256, seed=0, last=4).query.shape[1] == 16


def test_another_seed_captures_another_document(captor):
    first, again, other = (captor.heads(256, seed, last=1).value for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_heads_of_a_real_model_are_those_of_every_third_layer():
    reader = Reader(MODEL, "cpu")
    layers, taken = heads_by_layer(reader, 256), real_heads(reader, 256)
    assert list(layers) == [0, 1, 2, 3] and taken.key.shape == (1, 4, 256, 64)
    assert torch.equal(taken.query, torch.cat([layers[0].query, layers[3].query], 1))


def test_layers_of_a_sliding_window_are_no_input():
    assert full_attention_layers(Gemma3TextConfig(num_hidden_layers=12)) == {5, 11}
    assert full_attention_layers(LlamaConfig(num_hidden_layers=2)) == {0, 1}


def test_the_operator_is_exact_without_a_threshold_and_says_so():
    heads = generated(1024, 64, seed=0)
    out, shares = sparse(heads, tau=0.0)
    assert shares["density"] == 1
    assert distance(out, dense(heads))["error"] < 1e-6


def test_the_worst_head_is_the_one_that_is_wrong():
    heads = generated(512, 64, seed=0)
    reference = dense(heads)
    out = reference.clone()
    out[:, 2] *= 1.5
    found = distance(out, reference)
    assert found["worst_head"] == pytest.approx(0.5)
    assert [error > 0 for error in found["mse_per_head"]] == [head == 2 for head in range(8)]
    assert found["mse"] == pytest.approx(sum(found["mse_per_head"]) / 8)
