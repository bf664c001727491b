"""What a model computes on a cache that tokens were dropped from: what a mask over a whole cache would have hidden."""

import copy

import pytest
import torch
from transformers import DynamicCache, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

import hf_infeco
from hf_infeco import CACHE_NAME, InnerQCache, InnerQConfig, fork_cache, held_mask, keep_tokens

SIZES = dict(
    vocab_size=97, num_hidden_layers=2, hidden_size=64, intermediate_size=64, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, initializer_range=0.2, eos_token_id=None, pad_token_id=0, bos_token_id=1,
)  # fmt: skip
CONFIG = LlamaConfig(**SIZES)
EXACT = InnerQConfig(recent=10**6)
TOKENS, NEW = 40, 5


def llama(patched: bool, **settings) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(copy.deepcopy(CONFIG)).eval()
    return hf_infeco.patch(model, innerq=EXACT, **settings) if patched else model


def new_cache(kind: str):
    return DynamicCache(config=CONFIG) if kind == "dynamic" else InnerQCache(CONFIG, EXACT)


def ids(batch: int) -> torch.Tensor:
    return torch.randint(3, 97, (batch, TOKENS + NEW), generator=torch.Generator().manual_seed(1))


def kept(batch: int, ragged: bool) -> torch.Tensor:
    mask = torch.ones(batch, TOKENS, dtype=torch.bool)
    mask[:, 4:15] = False
    mask[-1, 20 : 33 if ragged else 20] = False
    return mask


def left_padded(batch: int) -> torch.Tensor:
    mask = torch.ones(batch, TOKENS + NEW, dtype=torch.long)
    mask[1, :7] = 0
    return mask


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def expected_logits(tokens: torch.Tensor, keep: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    """Of the new tokens, on a whole dense cache, under a 4-D mask that hides what was dropped."""
    model, cache = llama(patched=False), DynamicCache(config=CONFIG)
    mask = torch.ones_like(tokens) if padding is None else padding
    where = positions_of(mask)
    model(tokens[:, :TOKENS], attention_mask=mask[:, :TOKENS], position_ids=where[:, :TOKENS], **{CACHE_NAME: cache})
    held = torch.cat([keep, torch.ones(len(keep), NEW, dtype=torch.bool)], 1) & mask.bool()
    causal = torch.ones(NEW, TOKENS + NEW, dtype=torch.bool).tril(TOKENS)
    mask_4d = causal & held[:, None, None]
    new = dict(attention_mask=mask_4d, position_ids=where[:, TOKENS:])
    return model(tokens[:, TOKENS:], **new, **{CACHE_NAME: cache}).logits


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("rows", ["one", "alike", "ragged", "padded", "padded and ragged"])
@pytest.mark.parametrize("patched", [True, False])
@pytest.mark.parametrize("kind", ["dynamic", "innerq"])
@torch.no_grad()
def test_a_forward_sees_what_was_kept_and_nothing_else(kind, patched, rows, at_once):
    batch = 1 if rows == "one" else 3
    tokens, keep = ids(batch), kept(batch, "ragged" in rows)
    padding = left_padded(batch) if "padded" in rows else None
    model, cache = llama(patched), new_cache(kind)
    masks, where = {}, {}
    if padding is not None:
        keep = keep & padding[:, :TOKENS].bool()
        masks, where = dict(attention_mask=padding), dict(position_ids=positions_of(padding))

    def call(begin: int, end: int) -> torch.Tensor:
        given = {name: mask[:, :end] for name, mask in masks.items()}
        if not patched and begin and (padding is not None or "ragged" in rows):
            mask = given.get("attention_mask", torch.ones(batch, end, dtype=torch.long))
            given = dict(attention_mask=held_mask(cache, mask))
        given |= {name: ids[:, begin:end] for name, ids in where.items()}
        return model(tokens[:, begin:end], **given, **{CACHE_NAME: cache}).logits

    call(0, TOKENS)
    keep_tokens(cache, keep)
    assert cache.get_seq_length() == TOKENS
    steps = [(TOKENS, TOKENS + NEW)] if at_once else [(at, at + 1) for at in range(TOKENS, TOKENS + NEW)]
    got = torch.cat([call(*step) for step in steps], 1)
    torch.testing.assert_close(got, expected_logits(tokens, keep, padding), rtol=1e-4, atol=1e-4)
    assert cache.get_seq_length() == TOKENS + NEW


@pytest.mark.parametrize("rows", ["one", "ragged", "padded and ragged"])
@pytest.mark.parametrize("patched", [True, False])
@pytest.mark.parametrize("kind", ["dynamic", "innerq"])
@torch.no_grad()
def test_generate_goes_on_after_tokens_were_dropped(kind, patched, rows):
    """With all ids and the mask of all of them, as if nothing had been dropped; unpatched with `held_mask`."""
    batch = 1 if rows == "one" else 3
    tokens, keep = ids(batch)[:, : TOKENS + 1], kept(batch, "ragged" in rows)
    mask = left_padded(batch)[:, : TOKENS + 1] if "padded" in rows else torch.ones_like(tokens)
    keep, where = keep & mask[:, :TOKENS].bool(), positions_of(mask)
    model, cache = llama(patched), new_cache(kind)
    before = dict(attention_mask=mask[:, :TOKENS], position_ids=where[:, :TOKENS])
    model(tokens[:, :TOKENS], **before, **{CACHE_NAME: cache})
    keep_tokens(cache, keep)
    given = dict(attention_mask=mask)
    if not patched and batch > 1:
        given = dict(attention_mask=held_mask(cache, mask), position_ids=where)
    settings = dict(max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_logits=True)
    got = model.generate(tokens, **given, **settings, **{CACHE_NAME: cache})
    text, whole_mask = got.sequences[:, :-1], torch.nn.functional.pad(mask, (0, NEW - 1), value=1)
    expected = expected_logits(text, keep, whole_mask)
    torch.testing.assert_close(torch.stack(got.logits, 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_a_patched_model_searches_beams_on_a_kept_cache_as_on_a_dense_one(beams):
    texts = []
    for kind in ("dynamic", "innerq"):
        model, cache, tokens = llama(patched=True), new_cache(kind), ids(1)
        model(tokens[:, :TOKENS], **{CACHE_NAME: cache})
        keep_tokens(cache, kept(1, ragged=True))
        cache.batch_repeat_interleave(beams)
        settings = dict(max_new_tokens=12, do_sample=False, num_beams=beams, **{CACHE_NAME: cache})
        texts.append(model.generate(tokens[:, : TOKENS + 1], **settings))
    assert torch.equal(*texts) and texts[0].shape[1] == TOKENS + 13


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@torch.no_grad()
def test_a_mask_of_four_dimensions_speaks_of_the_keys_shown(dtype):
    tokens, keep = ids(3), kept(3, ragged=True)
    model, cache = llama(patched=True), new_cache("dynamic")
    model(tokens[:, :TOKENS], **{CACHE_NAME: cache})
    keep_tokens(cache, keep)
    most = int(keep.sum(1).max())
    mask = torch.ones(3, 1, NEW, most + NEW, dtype=torch.bool).tril(most)
    if dtype != torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(dtype).min)
    got = model(tokens[:, TOKENS:], attention_mask=mask, **{CACHE_NAME: cache}).logits
    torch.testing.assert_close(got, expected_logits(tokens, keep, None), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("patched", [True, False])
@torch.no_grad()
def test_sliding_windows_are_left_alone(patched):
    config = Gemma3TextConfig(**SIZES, layer_types=["sliding_attention", "full_attention"], sliding_window=16)
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config).eval()
    whole, cache, tokens = DynamicCache(config=config), DynamicCache(config=config), ids(1)[:, : TOKENS + 1]
    for each in (whole, cache):
        model(tokens[:, :TOKENS], **{CACHE_NAME: each})
    keep = kept(1, ragged=True)
    keep_tokens(cache, keep)
    held = torch.nn.functional.pad(keep, (0, 1), value=True)[:, None, None]
    masks = {"full_attention": held, "sliding_attention": torch.ones(1, 1, 1, 16, dtype=torch.bool)}
    expected = model(tokens[:, TOKENS:], attention_mask=masks, **{CACHE_NAME: whole}).logits
    if patched:
        hf_infeco.patch(model, innerq=False)
    got = model(tokens[:, TOKENS:], **{CACHE_NAME: cache}).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert cache.layers[0].keys.shape[2] == 15 and cache.layers[1].keys.shape[2] == int(keep.sum()) + 1


@torch.no_grad()
def test_rows_of_a_padded_hybrid_are_masked_each_as_its_layer_needs():
    config = Gemma3TextConfig(**SIZES, layer_types=["sliding_attention", "full_attention"], sliding_window=16)
    torch.manual_seed(0)
    model = hf_infeco.patch(Gemma3ForCausalLM(config).eval(), innerq=EXACT)
    tokens, padding = ids(3), torch.ones(3, TOKENS + NEW, dtype=torch.long)
    padding[1, :30] = 0  # reaches into the window
    where, keep = positions_of(padding), kept(3, ragged=True) & padding[:, :TOKENS].bool()

    def logits(rows: slice, drop_padding: bool) -> torch.Tensor:
        start = int((padding[rows] == 0).sum()) if drop_padding else 0
        cache, mask = InnerQCache(config, EXACT), padding[rows, start:]
        past = TOKENS - start
        given = dict(attention_mask=mask[:, :past], position_ids=where[rows, start:TOKENS])
        model(tokens[rows, start:TOKENS], **given, **{CACHE_NAME: cache})
        keep_tokens(cache, keep[rows, start:])
        given = dict(attention_mask=mask, position_ids=where[rows, TOKENS:])
        return model(tokens[rows, TOKENS:], **given, **{CACHE_NAME: cache}).logits

    alone = [logits(slice(row, row + 1), True) for row in range(3)]
    torch.testing.assert_close(logits(slice(0, 3), False), torch.cat(alone), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_side_thread_on_a_fork_changes_nothing_for_the_main_one():
    tokens = torch.randint(3, 97, (1, 400), generator=torch.Generator().manual_seed(1))
    model, settings = llama(patched=True), InnerQConfig(sink=4, recent=8)
    plain, forked = InnerQCache(CONFIG, settings), InnerQCache(CONFIG, settings)
    for cache in (plain, forked):
        model(tokens[:, :300], **{CACHE_NAME: cache})
    side = fork_cache(forked)
    model(tokens[:, 200:290], **{CACHE_NAME: side})
    keep_tokens(side, torch.arange(side.get_seq_length())[None] % 3 > 0)
    outs = []
    for cache in (plain, forked):
        outs.append(model(tokens[:, 300:], **{CACHE_NAME: cache}).logits)
        outs.append(model(tokens[:, :1], **{CACHE_NAME: cache}).logits)
    assert torch.equal(outs[0], outs[2]) and torch.equal(outs[1], outs[3])


@pytest.mark.parametrize("patched", [True, False])
@pytest.mark.parametrize("kind", ["dynamic", "innerq"])
@torch.no_grad()
def test_a_kept_cache_is_rolled_back_like_any_other(kind, patched):
    """As assisted decoding does: tokens that were not accepted are cropped, then others come in their place."""
    model, cache, tokens = llama(patched), new_cache(kind), ids(1)
    model(tokens[:, :TOKENS], **{CACHE_NAME: cache})
    keep_tokens(cache, kept(1, ragged=True))
    model(torch.cat([tokens[:, TOKENS : TOKENS + 2], tokens[:, :3]], 1), **{CACHE_NAME: cache})
    cache.crop(-3)
    got = model(tokens[:, TOKENS + 2 :], **{CACHE_NAME: cache}).logits
    torch.testing.assert_close(got, expected_logits(tokens, kept(1, ragged=True), None)[:, 2:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_deepcopy_of_a_kept_cache_is_independent():
    model, cache, tokens = llama(patched=True), new_cache("dynamic"), ids(3)
    model(tokens[:, :TOKENS], **{CACHE_NAME: cache})
    keep_tokens(cache, kept(3, ragged=True))
    twin = copy.deepcopy(cache)
    first, second = (model(tokens[:, TOKENS:], **{CACHE_NAME: each}).logits for each in (cache, twin))
    assert torch.equal(first, second)
