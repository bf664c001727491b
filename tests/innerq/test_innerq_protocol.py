"""What other libraries do with a cache of transformers: write, select, iterate, and change the mode it runs in."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import hf_infeco
from hf_infeco import CACHE_NAME, InnerQCache, InnerQConfig
from hf_infeco.innerq.layer import InnerQLayer

from .test_innerq_cache import CONFIG, RECENT, SINK, filled, states


def test_a_list_selects_rows_too():
    layer = filled(300)
    expected = layer.keys[[1, 1]]
    layer.batch_select_indices([1, 1])
    assert torch.equal(layer.keys, expected)


@pytest.mark.parametrize("tokens", [30, 300])
def test_a_compressor_may_write_keys_and_values(tokens):
    """As it would those of a `DynamicLayer`: a shorter tensor in place of the old one, keys first."""
    layer, kept = filled(tokens), slice(10, 25)
    key, value = layer.keys[:, :, kept], layer.values[:, :, kept]
    layer.keys = key
    layer.values = value
    assert layer.get_seq_length() == 15
    assert torch.equal(layer.keys, key) and torch.equal(layer.values, value)
    for seed in range(4):
        new = states(100, seed=seed)
        attended, _ = layer.update(*new)
        assert torch.equal((attended + 0)[:, :, -100:], new[0])
    assert torch.equal(layer.keys[:, :, :SINK], key[:, :, :SINK]) and layer.keys.shape[2] == 415


def test_a_mask_of_other_positions_hides_nothing_that_was_written():
    config = LlamaConfig(num_hidden_layers=1, hidden_size=128, num_attention_heads=2)
    cache = InnerQCache(config, CONFIG)
    mask = torch.ones(2, 300)
    mask[1, :70] = 0
    cache.set_left_padding(mask)
    cache.update(*states(300), 0)
    layer = cache.layers[0]
    key, value = (tensor[:, :, 80:280] for tensor in (layer.keys, layer.values))  # what a compressor keeps
    layer.keys, layer.values = key, value
    cache.set_left_padding(torch.cat([mask, torch.ones(2, 1)], 1))
    cache.update(*states(1, seed=1), 0)
    torch.testing.assert_close(layer.keys[:, :, :200], key, rtol=0, atol=0.9)


def test_an_empty_layer_may_be_written_too():
    layer = InnerQLayer(CONFIG)
    key, value = states(20)
    layer.values = value
    layer.keys = key
    assert torch.equal(layer.keys, key) and torch.equal(layer.values, value) and layer.get_seq_length() == 20


def test_a_cache_is_iterated_like_a_dynamic_one():
    config = LlamaConfig(num_hidden_layers=2, hidden_size=128, num_attention_heads=2)
    caches = InnerQCache(config, CONFIG), DynamicCache(config=config)
    for each in caches:
        each.update(*states(30), 0)
        each.update(*states(20, seed=1), 1)
    for got, expected in zip(*caches, strict=True):
        assert len(got) == len(expected)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("inside_first", [True, False])
@pytest.mark.parametrize("patched", [False, True])
def test_a_cache_outlives_an_inference_mode(inside_first, patched):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, num_hidden_layers=1, hidden_size=64, intermediate_size=64, num_attention_heads=1
    )
    model = LlamaForCausalLM(config).eval()
    if patched:
        hf_infeco.patch(model, s2o=False)
    ids = torch.randint(0, 97, (2, 290), generator=torch.Generator().manual_seed(0))

    def run(*inference: bool) -> torch.Tensor:
        """A prompt, then two times 70 steps, in one mode after the other."""
        cache, logits = InnerQCache(config, CONFIG), []
        for piece, mode in zip(ids.split([150, 70, 70], dim=1), inference, strict=True):
            with torch.inference_mode(mode), torch.no_grad():
                steps = piece.split(1 if logits else 150, dim=1)
                logits += [model(step, **{CACHE_NAME: cache}).logits for step in steps]
        cache.crop(-50)
        cache.reorder_cache(torch.tensor([1, 0]))
        return torch.cat([*logits, model(ids[:, :5], **{CACHE_NAME: cache}).logits.detach()], 1)

    expected = run(False, False, False)
    assert torch.equal(run(inside_first, not inside_first, inside_first), expected)


@pytest.mark.parametrize("settings", [InnerQConfig(), InnerQConfig.hybrid()])
def test_values_beyond_float16_s_scales_come_back(settings):
    layer = InnerQLayer(replace(settings, sink=SINK, recent=RECENT))
    for largest in (1, 1e6, 1, 1e12):  # a later tile may be the first such one
        key, value = (tensor.bfloat16() for tensor in states(200))
        layer.update(key, value * largest)
        held = layer.values[:, :, SINK:-RECENT][:, :, -100:]
        assert (held - (value * largest)[:, :, -RECENT - 100 : -RECENT]).abs().max() <= largest * 2.5
    handle, _ = layer.update(key, value)
    query = torch.randn(2, 4, 200, 64, generator=torch.Generator().manual_seed(1))
    expected = F.scaled_dot_product_attention(
        query, *(tensor.float() for tensor in handle.view_of.dequantize()), scale=0.2, enable_gqa=True,
        attn_mask=torch.ones(200, 1000, dtype=torch.bool).tril(800),
    )  # fmt: skip
    got = handle.view_of.attend(query, 0.2, None)
    torch.testing.assert_close(got, expected, rtol=0.02, atol=float(expected.abs().max()) * 1e-2)
