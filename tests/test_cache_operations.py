"""Dropping tokens, forking, taking heads and joining them: against a dense cache that forgets nothing and masks it."""

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, LlamaConfig, MistralConfig, StaticCache

from hf_infeco import (
    InnerQCache,
    InnerQConfig,
    cache_nbytes,
    fork_cache,
    join_heads,
    keep_tokens,
    select_heads,
)
from hf_infeco.attention import PLAN_ATTRIBUTE, LayerPlan, infeco_attention
from hf_infeco.kernels.innerq.reference import GROUP
from hf_infeco.kv import HandleLayer, KVHandle, plain

HEADS, DIM = 2, 32
SIZES = dict(vocab_size=97, hidden_size=128, intermediate_size=64, num_attention_heads=4, head_dim=DIM)
CONFIG = LlamaConfig(num_hidden_layers=1, num_key_value_heads=HEADS, **SIZES)
EXACT = InnerQConfig(recent=10**6)
PACKED = InnerQConfig(sink=3, recent=5)


class Remembering:
    """The reference: all keys and values `[B, Hkv, tokens, D]` ever seen, and which of them are held `[B, tokens]`."""

    def __init__(self, batch: int):
        self.key = self.value = torch.zeros(batch, HEADS, 0, DIM)
        self.held = torch.zeros(batch, 0, dtype=torch.bool)

    def copy(self) -> "Remembering":
        twin = Remembering(0)
        twin.__dict__ |= self.__dict__
        return twin

    def append(self, key: torch.Tensor, value: torch.Tensor) -> None:
        self.key, self.value = torch.cat([self.key, key], 2), torch.cat([self.value, value], 2)
        self.held = F.pad(self.held, (0, key.shape[2]), value=True)

    def crop(self, count: int) -> None:
        left = self.held.shape[1] - count
        self.key, self.value, self.held = self.key[:, :, :left], self.value[:, :, :left], self.held[:, :left]

    def rows(self, index: torch.Tensor) -> None:
        self.key, self.value, self.held = self.key[index], self.value[index], self.held[index]

    def attend(self, query: torch.Tensor) -> torch.Tensor:
        """`[B, H, q_len, D]` of the last tokens' queries."""
        tokens, q_len = self.held.shape[1], query.shape[2]
        mask = torch.ones(q_len, tokens, dtype=torch.bool).tril(tokens - q_len) & self.held[:, None, None]
        return F.scaled_dot_product_attention(query, self.key, self.value, attn_mask=mask, enable_gqa=True)

    def shown(self, tensor: torch.Tensor) -> torch.Tensor:
        """What a cache shows: each row's tokens moved to the end, the rest zeros."""
        most = int(self.held.sum(1).max())
        rows = [row[:, held] for row, held in zip(tensor, self.held, strict=True)]
        return torch.stack([F.pad(row, (0, 0, most - row.shape[1], 0)) for row in rows])


class Attention(nn.Module):
    """What our attention function reads of a model's attention module."""

    is_causal, num_key_value_groups = True, 2

    def __init__(self):
        super().__init__()
        setattr(self, PLAN_ATTRIBUTE, LayerPlan())


MODULE = Attention().eval()


class Pair:
    """A cache beside its reference, taken through the same operations by a seeded generator."""

    def __init__(self, cache, generator: torch.Generator, batch: int):
        self.cache, self.reference, self.generator = cache, Remembering(batch), generator

    @property
    def batch(self) -> int:
        return len(self.reference.held)

    @property
    def tokens(self) -> int:
        return self.reference.held.shape[1]

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def append(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """New tokens: attention's output, and the reference's."""
        key, value = (self.random(self.batch, HEADS, count, DIM) for _ in range(2))
        query = self.random(self.batch, 2 * HEADS, count, DIM)
        self.reference.append(key, value)
        self.last = query, self.cache.update(key, value, 0)
        out, _ = infeco_attention(MODULE, query, *self.last[1], None)
        return out.transpose(1, 2), self.reference.attend(query)

    def cut_and_join(self) -> None:
        self.cache = join_heads([select_heads(self.cache, slice(head, head + 1)) for head in range(HEADS)])

    def keep(self, mask: torch.Tensor) -> None:
        keep_tokens(self.cache, mask)
        self.reference.held = self.reference.held & mask

    def crop(self, count: int) -> None:
        self.cache.crop(-count)
        self.reference.crop(count)

    def select(self, index: torch.Tensor, how: str) -> None:
        getattr(self.cache, how)(index)
        self.reference.rows(index)

    def repeat(self, times: int) -> None:
        self.cache.batch_repeat_interleave(times)
        self.reference.rows(torch.arange(self.batch).repeat_interleave(times))

    def fork(self) -> "Pair":
        twin = Pair(fork_cache(self.cache), self.generator, 0)
        twin.reference = self.reference.copy()
        return twin


def spans(rng: random.Random, batch: int, tokens: int) -> torch.Tensor:
    """A mask that drops a span of every row, sometimes none and sometimes all but a few tokens."""
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    for row in mask:
        begin, end = sorted(rng.randrange(tokens + 1) for _ in range(2))
        row[begin : end if rng.random() < 0.8 else begin] = False
    return mask if rng.random() < 0.7 else mask[:1].expand(batch, -1)


def step(rng: random.Random, pair: Pair, longest: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """One random operation; what `append` returned, if it was that."""
    name = rng.choice(["append", "append", "append", "heads", "keep", "keep", "crop", "reorder", "select", "repeat"])
    if name == "append" or pair.tokens == 0:
        return pair.append(rng.randint(1, longest))
    if name == "heads":
        pair.cut_and_join()
    elif name == "keep":
        pair.keep(spans(rng, pair.batch, pair.tokens))
    elif name == "crop":
        pair.crop(rng.randint(1, max(1, pair.tokens // 3)))
    elif name == "repeat" and pair.batch < 3:
        pair.repeat(2)
    else:
        index = torch.tensor([rng.randrange(pair.batch) for _ in range(pair.batch)])
        pair.select(index, "reorder_cache" if name == "reorder" else "batch_select_indices")
    return None


def sequence(seed: int, cache: Cache, longest: int, check: Callable, steps: int = 8) -> None:
    """Random operations on a cache and its forks; `check` sees each after attention, and all of them at the end."""
    rng = random.Random(seed)
    pairs = [Pair(cache, torch.Generator().manual_seed(seed), rng.randint(1, 3))]
    for _ in range(steps):
        if rng.random() < 0.15:
            pairs.append(rng.choice(pairs).fork())
        pair = rng.choice(pairs)
        if (outs := step(rng, pair, longest)) is not None:
            check(pair, *outs)
    for pair in pairs:
        assert pair.cache.get_seq_length() == pair.tokens
        check(pair, *pair.append(1))


def agree(pair: Pair, out: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(out, expected)
    layer, reference = pair.cache.layers[0], pair.reference
    for held, tensor in ((layer.keys, reference.key), (layer.values, reference.value)):
        shown = reference.shown(tensor)
        held = held[:, :, held.shape[2] - shown.shape[2] :]
        assert torch.equal(held.where(shown != 0, 0), shown)


@pytest.mark.parametrize("kind", ["dynamic", "innerq"])
def test_a_thousand_random_sequences_equal_a_dense_cache_that_masks(kind):
    for seed in range(1000):
        cache = DynamicCache(config=CONFIG) if kind == "dynamic" else InnerQCache(CONFIG, EXACT)
        sequence(seed, cache, 6, agree)


def packed_and_unpacked_agree(pair: Pair, out: torch.Tensor, expected: torch.Tensor) -> None:
    """Attention on tiles with holes is that on their dequantized tokens, which are near what went in."""
    query, (key, value) = pair.last
    held = key.view_of.key_mask(None) if isinstance(key, KVHandle) else None
    key, value = plain(key), plain(value)
    mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
    mask = mask if held is None else mask & held[:, None, None]
    dense = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-4)
    for shown, tensor in ((key, pair.reference.key), (value, pair.reference.value)):
        original = pair.reference.shown(tensor)
        shown = shown[:, :, shown.shape[2] - original.shape[2] :].where(original != 0, 0)
        torch.testing.assert_close(shown, original, rtol=0, atol=1.2)


def test_random_sequences_on_packed_tokens_agree_with_dequantizing_them():
    for seed in range(200):
        sequence(seed, InnerQCache(CONFIG, PACKED), 40, packed_and_unpacked_agree)


# ---------------------------------------------------------------- memory, packed tokens, refusals


def filled(kind: str, tokens: int = 1000, batch: int = 1, layers: int = 1) -> Cache:
    config = LlamaConfig(num_hidden_layers=layers, num_key_value_heads=HEADS, **SIZES)
    cache = DynamicCache(config=config) if kind == "dynamic" else InnerQCache(config, PACKED)
    generator = torch.Generator().manual_seed(0)
    for layer in range(layers):
        cache.update(*(torch.randn(batch, HEADS, tokens, DIM, generator=generator) for _ in range(2)), layer)
    return cache


def dropping(begin: int, end: int, tokens: int = 1000, batch: int = 1) -> torch.Tensor:
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    mask[:, begin:end] = False
    return mask


def storages(*caches: Cache) -> dict[int, int]:
    """Bytes of every storage of these caches, by its address."""
    layers = [layer for cache in caches for layer in cache.layers]
    held = [
        t for layer in layers for t in (layer.tensors() if isinstance(layer, HandleLayer) else vars(layer).values())
    ]
    found = [tensor.untyped_storage() for tensor in held if isinstance(tensor, torch.Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def test_a_dense_cache_frees_what_no_row_holds():
    cache = filled("dynamic", batch=2)
    mask = dropping(100, 900, batch=2)
    mask[1] = dropping(0, 700)[0]  # other tokens, and 100 fewer of them
    keep_tokens(cache, mask)
    numbers, positions = 2 * 2 * HEADS * 300 * DIM, 2 * 300
    assert cache_nbytes(cache) == 4 * (numbers + positions)


def test_whole_tiles_are_freed_row_by_row():
    """Rows drop other tiles: each row's are moved together."""
    cache, alike = filled("innerq", batch=2), filled("innerq", batch=2)
    before = cache.nbytes
    mask = dropping(200, 520, batch=2)
    keep_tokens(alike, mask)
    mask[1] = dropping(600, 920)[0]
    keep_tokens(cache, mask)
    tiles = cache.layers[0]._store.num_slots // GROUP
    assert tiles == alike.layers[0]._store.num_slots // GROUP == 31 - 9
    assert cache.nbytes < before * 23 / 31 + 2 * 8 * 1000  # and the positions


def test_a_tile_of_which_a_token_is_left_stays_and_the_others_of_it_are_masked():
    cache = filled("innerq")
    shown = cache.layers[0].keys
    mask = torch.zeros(1, 1000, dtype=torch.bool)
    mask[:, [0, 100, 500, 501, 999]] = True
    keep_tokens(cache, mask)
    assert cache.layers[0]._store.num_slots == 2 * GROUP
    assert torch.equal(cache.layers[0].keys, shown[:, :, mask[0]])


@pytest.mark.parametrize("kind", ["dynamic", "innerq"])
def test_keeping_everything_changes_nothing_at_all(kind):
    cache = filled(kind)
    kinds, before = [type(layer) for layer in cache.layers], storages(cache)
    keep_tokens(cache, torch.ones(1, 1000, dtype=torch.bool))
    assert storages(cache) == before and [type(layer) for layer in cache.layers] == kinds
    assert cache.layers[0].get_mask_sizes(1) == (1001, 0)


@pytest.mark.parametrize("kind", ["dynamic", "innerq"])
def test_a_cache_of_which_nothing_is_kept_counts_on(kind):
    cache = filled(kind)
    keep_tokens(cache, torch.zeros(1, 1000, dtype=torch.bool))
    assert cache_nbytes(cache) < 1000 and cache.get_seq_length() == 1000
    assert cache.layers[0].get_mask_sizes(3) == (3, 1000)
    key, value = (torch.randn(1, HEADS, 300, DIM) for _ in range(2))
    cache.update(key, value, 0)
    assert torch.equal(cache.layers[0].keys[:, :, -5:], key[:, :, -5:]) and cache.get_seq_length() == 1300


def test_layers_hold_one_tensor_of_positions():
    cache = filled("innerq", layers=3)
    keep_tokens(cache, dropping(100, 150))
    assert len({layer.kept.position.data_ptr() for layer in cache.layers}) == 1


@pytest.mark.parametrize("kind", ["dynamic", "innerq"])
def test_a_fork_takes_no_memory_until_it_goes_on(kind):
    cache = filled(kind, 4000)
    alone = storages(cache)
    fork = fork_cache(cache)
    assert storages(cache, fork) == alone


def test_a_fork_of_packed_tokens_shares_them_for_a_sixteenth_of_their_number():
    cache = filled("innerq", 4000)
    packed = {t.data_ptr() for t in cache.layers[0]._store._buffers.values()}
    fork = fork_cache(cache)

    def shared() -> set[int]:
        return packed & {t.data_ptr() for t in fork.layers[0]._store._buffers.values()}

    for tokens in (1, 63, 64, 100):
        fork.update(*(torch.randn(1, HEADS, tokens, DIM) for _ in range(2)), 0)
    assert shared() == packed
    fork.update(*(torch.randn(1, HEADS, 64, DIM) for _ in range(2)), 0)
    assert not shared() and fork.layers[0]._recent[0].shape[2] < GROUP + PACKED.recent


@pytest.mark.parametrize("first", ["fork", "origin"])
def test_neither_a_fork_nor_its_origin_notices_what_the_other_packs(first):
    cache = filled("innerq", 200)
    caches = {"origin": cache, "fork": fork_cache(cache)}
    shown = cache.layers[0].keys
    order = ["fork", "origin"] if first == "fork" else ["origin", "fork"]
    for name in order * 2:  # each packs into what would be the same tiles, and crops back behind the fork
        key = torch.full((1, HEADS, 100, DIM), 1.0 if name == "fork" else -1.0)
        caches[name].update(key, key, 0)
        caches[name].crop(-130 if name == order[0] else -90)
    for name, each in caches.items():
        length = each.get_seq_length()
        kept = min(140, length)
        assert torch.equal(each.layers[0].keys[:, :, :kept], shown[:, :, :kept]), name
        sign = 1.0 if name == "fork" else -1.0
        each.update(*(torch.full((1, HEADS, 40, DIM), sign) for _ in range(2)), 0)
        torch.testing.assert_close(
            each.layers[0].values[:, :, length:], torch.full((1, HEADS, 40, DIM), sign), rtol=0, atol=1e-3
        )


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("kind", ["dynamic", "innerq"])
def test_heads_are_cut_and_joined_bit_by_bit(kind, drop):
    cache = filled(kind, batch=2)
    if drop:
        keep_tokens(cache, dropping(100, 810, batch=2))
    parts = [select_heads(cache, slice(head, head + 1)) for head in range(HEADS)]
    whole = join_heads(parts)
    new = [torch.randn(2, HEADS, 70, DIM) for _ in range(2)]
    query = torch.randn(2, 2 * HEADS, 1, DIM)
    for part in parts:
        assert cache_nbytes(part) < 0.6 * cache_nbytes(cache) and not storages(part).keys() & storages(cache).keys()
    outs = []
    for head, part in enumerate(parts):
        part.update(*(tensor[:, head : head + 1] for tensor in new), 0)
        shown = part.update(*(tensor[:, head : head + 1, :1] for tensor in new), 0)
        outs.append(infeco_attention(MODULE, query[:, 2 * head : 2 * head + 2], *shown, None)[0])
    for each in (cache, whole):
        each.update(*new, 0)
        out, _ = infeco_attention(MODULE, query, *each.update(*(tensor[:, :, :1] for tensor in new), 0), None)
        torch.testing.assert_close(out, torch.cat(outs, 2), rtol=1e-5, atol=1e-6)
    joined = join_heads(parts).layers[0]
    for name, tensor in (joined.state() if kind == "innerq" or drop else {}).items():
        assert torch.equal(tensor, cache.layers[0].state()[name]), name
    assert torch.equal(joined.keys, cache.layers[0].keys)


@pytest.mark.parametrize("ragged", [False, True])
def test_a_kept_cache_is_saved_and_loaded(ragged, tmp_path):
    cache = filled("innerq", batch=2, layers=2)
    mask = dropping(100, 810, batch=2)
    mask[1, 20 : 50 if ragged else 20] = False
    keep_tokens(cache, mask)
    cache.save(tmp_path / "cache")
    loaded = InnerQCache.load(tmp_path / "cache", LlamaConfig(num_hidden_layers=2, num_key_value_heads=HEADS, **SIZES))
    assert loaded.get_seq_length() == 1000
    new = [torch.randn(2, HEADS, 70, DIM) for _ in range(2)]
    for each in (cache, loaded):
        each.update(*new, 1)
    for one, other in zip(cache.layers, loaded.layers, strict=True):
        assert torch.equal(one.keys, other.keys) and one.state().keys() == other.state().keys()
        assert all(torch.equal(tensor, other.state()[name]) for name, tensor in one.state().items())


def test_holes_take_no_part_in_what_is_packed_after_them():
    """A row's dropped tokens are packed where another row's are kept, and may be any number."""

    def packed(other: float) -> Cache:
        cache = InnerQCache(CONFIG, PACKED)
        generator = torch.Generator().manual_seed(0)
        key, value = (torch.randn(2, HEADS, 100, DIM, generator=generator) for _ in range(2))
        key[1, :, 10:80], value[1, :, 10:80] = other, other
        short = InnerQCache(CONFIG, EXACT)
        short.update(key, value, 0)
        mask = dropping(0, 0, 100, 2)
        mask[1, 10:80] = False
        keep_tokens(short, mask)
        cache.layers[0].load_state(short.layers[0].state())
        cache.update(key[:1, :, :40].repeat(2, 1, 1, 1), value[:1, :, :40].repeat(2, 1, 1, 1), 0)
        return cache

    one, other = packed(0.5), packed(1e4)
    assert one.layers[0]._store is not None
    for name in ("key.words", "value.words", "value.scale", "key_norm", "key_mean"):
        assert torch.equal(one.layers[0].state()[name], other.layers[0].state()[name]), name


@pytest.mark.parametrize(
    "mask", [torch.ones(1, 1000), torch.ones(1, 999, dtype=torch.bool), torch.ones(2, 1000, dtype=torch.bool)]
)
@pytest.mark.parametrize("kind", ["dynamic", "innerq"])
def test_a_mask_of_another_kind_is_refused_with_the_right_one(kind, mask):
    with pytest.raises(ValueError, match=r"mask is torch\.\w+ \[.*has to be torch\.bool \[1, 1000\]"):
        keep_tokens(filled(kind), mask)


def test_caches_that_cannot_forget_single_tokens_are_refused_by_name():
    static = StaticCache(config=CONFIG, max_cache_len=8)
    with pytest.raises(ValueError, match=r"Layer 0 .* StaticLayer.*no single tokens"):
        keep_tokens(static, torch.ones(1, 0, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"Layer 0 .* StaticLayer.*heads"):
        select_heads(static, slice(0, 1))
    windows = DynamicCache(config=MistralConfig(num_hidden_layers=1, sliding_window=8))
    with pytest.raises(ValueError, match="sliding windows"):
        keep_tokens(windows, torch.ones(1, 0, dtype=torch.bool))
    with pytest.raises(ValueError, match="self_attention_cache"):
        fork_cache(EncoderDecoderCache(filled("dynamic"), DynamicCache()))


@pytest.mark.parametrize("kind", ["dynamic", "innerq"])
def test_heads_of_other_tokens_are_not_joined(kind):
    cache = filled(kind)
    longer = fork_cache(cache)
    longer.update(*(torch.randn(1, HEADS, 3, DIM) for _ in range(2)), 0)
    with pytest.raises(ValueError, match="same tokens"):
        join_heads([cache, longer])
    with pytest.raises(ValueError, match="2 kinds"):
        join_heads([cache, filled("dynamic" if kind == "innerq" else "innerq")])
    with pytest.raises(ValueError, match=r"slice\(2, 4.*2 KV heads"):
        select_heads(cache, slice(2, 4))
