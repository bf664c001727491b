"""Left padding: every row keeps its own first tokens exact, and nothing of it hangs on the padding."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import hf_infeco
from hf_infeco import CACHE_NAME, InnerQCache, InnerQConfig
from hf_infeco.innerq.layer import InnerQLayer
from hf_infeco.innerq.padding import left_padding
from hf_infeco.kernels.innerq.reference import channel_mean, channel_norm
from hf_infeco.kv import plain

SINK, RECENT, TOKENS = 4, 40, 300
CONFIG = InnerQConfig(sink=SINK, recent=RECENT)
STARTS = (0, 3, 7, 64, 250, 275, 299)  # from none to all but one token
MODEL = LlamaConfig(
    vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, head_dim=32,
    num_key_value_heads=1, initializer_range=0.2, pad_token_id=0, eos_token_id=None,
)  # fmt: skip


def states(tokens: int = TOKENS, batch: int = len(STARTS), seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 2, tokens, 64, generator=generator) + 1 for _ in range(2)]


def mask_of(tokens: int, starts=STARTS) -> torch.Tensor:
    return torch.arange(tokens) >= torch.tensor(starts)[:, None]


def filled(tokens: int = TOKENS, starts=STARTS, step: int | None = None, pad: float = 0.5) -> InnerQLayer:
    """A padded layer that was given `tokens` tokens, `step` at a time or all at once; padding holds `pad`."""
    layer = InnerQLayer(CONFIG)
    key, value = (tensor.where(mask_of(tokens, starts)[:, None, :, None], pad) for tensor in states(tokens))
    for start in range(0, tokens, step or tokens):
        end = min(start + (step or tokens), tokens)
        layer.set_left_padding(left_padding(mask_of(end, starts)))
        layer.update(key[:, :, start:end], value[:, :, start:end])
    return layer


def real(tensor: torch.Tensor, row: int) -> torch.Tensor:
    return tensor[row, :, STARTS[row] :]


@pytest.mark.parametrize("step", [None, 1, 7, 130])
def test_the_first_real_tokens_of_every_row_are_exact(step):
    layer, exact = filled(step=step), states()
    for seed in range(1, 12):  # until the shortest row's tokens are packed
        new = states(30, seed=seed)
        layer.set_left_padding(left_padding(mask_of(layer.num_tokens + 30)))
        layer.update(*new)
        exact = [torch.cat(pair, 2) for pair in zip(exact, new, strict=True)]
        for row in range(len(STARTS)):
            for held, given in zip((layer.keys, layer.values), exact, strict=True):
                assert torch.equal(real(held, row)[:, :SINK], real(given, row)[:, :SINK])
                assert torch.equal(real(held, row)[:, -RECENT:], real(given, row)[:, -RECENT:])
                torch.testing.assert_close(real(held, row), real(given, row), rtol=0, atol=1)
    assert layer._padding.is_settled
    assert not torch.equal(real(layer.keys, -1), real(exact[0], -1))


def test_padding_by_whole_tiles_changes_no_bit():
    # Means are left out: over more tokens, of which some count for nothing, they are summed in another order.
    config = replace(CONFIG, center_keys=False)
    key, value = states(batch=1)
    alone = InnerQLayer(config)
    alone.update(key, value)
    padded = InnerQLayer(config)
    padded.set_left_padding(torch.tensor([64]))
    padded.update(*(F.pad(tensor, (0, 0, 64, 0), value=9) for tensor in (key, value)))
    for layer in (alone, padded):
        layer.update(*states(100, batch=1, seed=1))
    assert torch.equal(padded.keys[:, :, 64:], alone.keys) and torch.equal(padded.values[:, :, 64:], alone.values)


def test_means_and_norms_are_those_of_the_real_tokens_of_a_row():
    layer, key = filled(), states()[0]
    for row, start in enumerate(STARTS[:4]):
        own = key[row, None, :, start + SINK :]
        mean = channel_mean(own)
        torch.testing.assert_close(layer._store.key_mean[row, None], mean)
        torch.testing.assert_close(layer._store.key_norm[row, None], channel_norm(own, mean))


@pytest.mark.parametrize("pad", [float("nan"), float("inf"), 1e6])
def test_what_padding_holds_touches_nothing(pad):
    one, other = filled(pad=pad), filled(pad=0)
    for layer in (one, other):
        layer.update(*states(200, seed=1))
    for row in range(len(STARTS)):
        assert torch.equal(real(one.keys, row), real(other.keys, row))
        assert torch.equal(real(one.values, row), real(other.values, row))


@pytest.mark.parametrize("q_len", [1, 5])
def test_attending_packed_hides_the_padding(q_len):
    layer = filled()
    for seed in range(1, 40):
        handle, _ = layer.update(*states(q_len, seed=seed))
        query = torch.randn(len(STARTS), 4, q_len, 64, generator=torch.Generator().manual_seed(seed))
        mask, view = mask_of(layer.num_tokens), handle.view_of
        got = view.attend(query, 0.2, mask)
        causal = torch.ones(q_len, layer.num_tokens, dtype=torch.bool).tril(layer.num_tokens - q_len)
        key, value = view.dequantize()
        expected = F.scaled_dot_product_attention(
            query, key, value, attn_mask=causal & mask[:, None, None], scale=0.2, enable_gqa=True
        )
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("left", [1, 3, 4, 5, 8, 66, 70, 200, 252, 254, 270, 298, 330, 400])
def test_crop_forgets_the_newest_tokens_of_every_row(left):
    layer = filled()
    layer.update(*states(110, seed=1))
    before = layer.keys, layer.values
    layer.crop(left - 410)
    new = states(150, seed=2)
    layer.set_left_padding(left_padding(mask_of(left + 150)))
    handle, _ = layer.update(*new)
    for row, start in enumerate(STARTS):
        assert torch.equal(plain(handle)[row, :, start:left], before[0][row, :, start:left])
        later, given = max(start, left), new[1][row, :, max(start - left, 0) :]
        assert torch.equal(layer.values[row, :, later:][:, -RECENT:], given[:, -RECENT:])
        torch.testing.assert_close(layer.values[row, :, later:], given, rtol=0, atol=1)


@pytest.mark.parametrize("sink", [0, 32])
def test_a_row_cropped_back_into_its_padding_is_settled_anew(sink):
    """A short recent window: the row was settled when it had fewer real tokens than there are sinks."""
    layer, starts = InnerQLayer(InnerQConfig(sink=sink, recent=0)), torch.tensor([90, 0])

    def add(tokens: int, seed: int) -> list[torch.Tensor]:
        total = layer.num_tokens + tokens
        real = torch.arange(total - tokens, total) >= starts[:, None]
        new = [tensor.where(real[:, None, :, None], float("nan")) for tensor in states(tokens, batch=2, seed=seed)]
        layer.set_left_padding(left_padding(torch.arange(total) >= starts[:, None]))
        layer.update(*new)
        return new

    add(101, seed=0)
    assert layer._padding.is_settled and torch.isfinite(layer.keys[:, :, 90:]).all()
    layer.crop(-66)
    key, value = add(203, seed=1)
    for held, given in ((layer.keys, key), (layer.values, value)):
        assert torch.equal(held[0, :, 90 : 90 + sink], given[0, :, 55 : 55 + sink])
        torch.testing.assert_close(held[0, :, 90:], given[0, :, 55:], rtol=0, atol=1.2)
        torch.testing.assert_close(held[1, :, 35:], given[1], rtol=0, atol=1.2)


def test_batch_operations_carry_the_beginnings_along():
    layer = filled()
    order = torch.tensor([6, 2, 0, 4, 4])
    layer.batch_select_indices(order)
    layer.batch_repeat_interleave(2)
    twin = filled()
    new = states(300, seed=1)
    layer.update(*(tensor[order].repeat_interleave(2, 0) for tensor in new))
    twin.update(*new)
    for row, of in enumerate(order.repeat_interleave(2).tolist()):
        assert torch.equal(layer.keys[row, :, STARTS[of] :], real(twin.keys, of))
        assert torch.equal(layer.values[row, :, STARTS[of] :], real(twin.values, of))


def test_a_reset_layer_knows_no_padding():
    for tokens in (20, TOKENS):
        layer = filled(tokens)
        layer.crop(-tokens)
        assert layer._padding is None
    layer = filled()
    layer.reset()
    assert layer._padding is None


def test_without_padding_nothing_is_kept_of_it():
    cache = InnerQCache(MODEL, CONFIG)
    cache.set_left_padding(torch.ones(2, 300))
    assert all(layer._padding is None for layer in cache.layers)
    cache.set_left_padding(mask_of(300, (0, 5)))
    cache.set_left_padding(None)
    assert all(layer._padding is None for layer in cache.layers)
    with pytest.raises(ValueError, match="4 dimensions"):
        cache.set_left_padding(torch.ones(1, 1, 3, 3))


def padded_model_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 97, (3, 300), generator=torch.Generator().manual_seed(0))
    return ids, mask_of(300, (0, 40, 280)).long()


@pytest.mark.parametrize("patched", [False, True])
def test_a_saved_cache_knows_its_padding(patched, tmp_path):
    torch.manual_seed(0)
    model = LlamaForCausalLM(copy.deepcopy(MODEL)).eval()
    if patched:
        hf_infeco.patch(model, s2o=False)
    ids, mask = padded_model_inputs()
    cache = InnerQCache(MODEL, CONFIG)
    cache.set_left_padding(mask)
    with torch.no_grad():
        model(ids[:, :-1], attention_mask=mask[:, :-1], **{CACHE_NAME: cache})
    cache.save(tmp_path / "cache")
    loaded, twin = InnerQCache.load(tmp_path / "cache", MODEL), copy.deepcopy(cache)
    settings = dict(attention_mask=mask, max_new_tokens=60, do_sample=False)
    expected = model.generate(ids, **{CACHE_NAME: twin}, **settings)
    assert torch.equal(model.generate(ids, **{CACHE_NAME: loaded}, **settings), expected)


def test_packed_and_dequantized_attention_agree_on_a_padded_batch():
    torch.manual_seed(0)
    model = LlamaForCausalLM(copy.deepcopy(MODEL)).eval()
    ids, mask = padded_model_inputs()
    settings = dict(attention_mask=mask, max_new_tokens=80, do_sample=False, output_logits=True)

    def run() -> torch.Tensor:
        cache = InnerQCache(MODEL, CONFIG)
        cache.set_left_padding(mask)
        out = model.generate(ids, **{CACHE_NAME: cache}, return_dict_in_generate=True, **settings)
        return torch.stack(out.logits)

    expected = run()
    hf_infeco.patch(model, s2o=False)
    torch.testing.assert_close(run(), expected, rtol=1e-3, atol=2e-3)
