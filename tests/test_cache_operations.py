"""Dropping tokens, forking, taking heads and joining them: against a dense cache that forgets nothing and masks it."""

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, DynamicCache, LlamaConfig

from hf_infeco import (
    InnerQCache,
    InnerQConfig,
    fork_cache,
    join_heads,
    keep_tokens,
    select_heads,
)
from hf_infeco.attention import PLAN_ATTRIBUTE, LayerPlan, infeco_attention
from hf_infeco.kv import KVHandle, plain

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
