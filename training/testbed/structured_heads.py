"""Query, key and value with the attention patterns of trained heads: Gaussian noise alone has no sparsity to find.

Half of the head dimension is positional: a RoPE phase that peaks at distance 0 (local band) and at one fixed distance
per KV head (slash). The other half is content, where directions are shared by
- sinks: the first `SINKS` keys, liked by every query, with small values, as trained models have them;
- vertical stripes: about 1 % of the keys carry one of `TOPICS` directions; queries like one topic for a run of tokens;
- needles: one key and one query row per pair share a direction nobody else has.
What is left is noise: a diffuse floor over all keys. Strengths differ by head, so heads differ in how much they focus.
"""

from typing import NamedTuple

import torch

SINKS = 4
TOPICS = 8
STRIPE_SHARE = 0.01


class Needle(NamedTuple):
    """Query head `head` at position `row` has most of its mass on key `position`."""

    head: int
    row: int
    position: int


class StructuredHeads(NamedTuple):
    query: torch.Tensor  # [1, H, N, D]
    key: torch.Tensor  # [1, Hkv, N, D]
    value: torch.Tensor  # [1, Hkv, N, D]
    needles: list[Needle]


def structured_heads(
    seq_len: int, *, num_heads: int = 8, num_kv_heads: int = 2, head_dim: int = 64, needles: int = 8, seed: int = 0
) -> StructuredHeads:
    """Float32 heads as described above, the same for the same arguments. Logits are meant at scale 1/sqrt(D)."""
    rng = torch.Generator().manual_seed(seed)
    ratio = num_heads // num_kv_heads
    key_position, local, slash = _positions(seq_len, num_kv_heads, head_dim // 2, rng)
    key_content, query_content = _contents(seq_len, num_heads, num_kv_heads, head_dim - key_position.shape[-1], rng)
    found = _plant_needles(query_content, key_content, needles, ratio, rng)

    near = _uniform((num_heads, 1, 1), 0.3, 1.7, rng)
    far = 2.0 - near  # a head is mostly local or mostly a slash, as trained heads are
    query_position = near * local.repeat_interleave(ratio, 0) + far * slash.repeat_interleave(ratio, 0)
    # The model's scale 1/sqrt(D) is multiplied back in, so that strengths above are plain logits.
    query = torch.cat([query_position, query_content], -1) * head_dim**0.5
    key = torch.cat([key_position, key_content], -1)
    value = torch.randn(num_kv_heads, seq_len, head_dim, generator=rng)
    value[:, :SINKS] *= 0.1
    return StructuredHeads(query[None], key[None], value[None], found)


def _positions(seq_len: int, num_kv_heads: int, width: int, rng: torch.Generator):
    """Rotary phases [Hkv, N, width]: of the keys, of a query that likes distance 0, of one that likes its slash."""
    pairs = width // 2
    frequency = 1e4 ** (-torch.arange(pairs) / pairs)
    distance = torch.randint(seq_len // 8, seq_len // 2 + 1, (num_kv_heads, 1), generator=rng)
    here = torch.arange(seq_len).expand(num_kv_heads, -1)

    def phase(position: torch.Tensor) -> torch.Tensor:
        angle = position[..., None] * frequency  # [Hkv, N, pairs]
        return torch.cat([angle.cos(), angle.sin()], -1) * (4.0 / pairs) ** 0.5

    return phase(here), phase(here), phase(here - distance)


def _contents(seq_len: int, num_heads: int, num_kv_heads: int, width: int, rng: torch.Generator):
    """Keys [Hkv, N, width] and queries [H, N, width] with sinks, topics and noise."""
    directions = torch.linalg.qr(torch.randn(width, TOPICS + 1, generator=rng)).Q.T  # [TOPICS + 1, width]
    key = torch.randn(num_kv_heads, seq_len, width, generator=rng) * _uniform((num_kv_heads, 1, 1), 0.1, 0.2, rng)
    key[:, :SINKS] += directions[0] * 4.0
    stripes = torch.rand(num_kv_heads, seq_len, generator=rng) < STRIPE_SHARE
    topic_of_key = torch.randint(1, TOPICS + 1, (num_kv_heads, seq_len), generator=rng)
    key += directions[topic_of_key] * (4.5 * stripes[..., None])

    changes = torch.rand(seq_len, generator=rng) < 1 / 300  # a topic lasts 300 tokens on average
    topic_of_run = torch.randint(1, TOPICS + 1, (seq_len,), generator=rng)
    topic_of_query = topic_of_run[changes.cumsum(0)]
    query = torch.randn(num_heads, seq_len, width, generator=rng) * 0.4
    query += directions[0] * _uniform((num_heads, 1, 1), 2.4, 3.2, rng)
    query += directions[topic_of_query] * _uniform((num_heads, 1, 1), 1.6, 2.6, rng)
    return key, query


def _plant_needles(query, key, count: int, ratio: int, rng: torch.Generator) -> list[Needle]:
    """Needle keys in the first half, the queries that look for them in the last quarter."""
    num_heads, seq_len, width = query.shape
    found = []
    for _ in range(count):
        head = int(torch.randint(num_heads, (1,), generator=rng))
        row = int(torch.randint(3 * seq_len // 4, seq_len, (1,), generator=rng))
        position = int(torch.randint(SINKS, seq_len // 2, (1,), generator=rng))
        direction = torch.nn.functional.normalize(torch.randn(width, generator=rng), dim=0)
        key[head // ratio, position] += 5.0 * direction
        query[head, row] += 5.0 * direction
        found.append(Needle(head, row, position))
    return found


def _uniform(shape: tuple[int, ...], low: float, high: float, rng: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng)
