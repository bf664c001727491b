"""
S2O prefill on CPUs: what all rows do alike, as matrix products by torch. `cpu_rows.py` and `cpu_tiles.py` do the rest.

Semantics are those of `reference.s2o_prefill` at `tile=1` or, for bfloat16 on processors with AMX, of tiles of
neighbours (`ordered=False`). bfloat16 stays bfloat16 in all products, with float32 sums, where the processor has the
instruction (AVX-512 BF16); any other dtype is computed in float32.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..jit import map_on_threads
from ..pairs import PairStats, count_causal_pairs
from ..vectors import LANES
from .cpu_cut import cut_into_granules
from .cpu_rows import Judging, Outputs, Packed, attend_rows, has_bfloat16
from .cpu_tiles import TILE, UNIT, attend_tiles, has_amx, palette
from .reference import frame_of, join_sink, segment_spans
from .settings import S2OSettings

NEAR_ROWS = 64  # of a segment that see the same near keys, or a mask


@torch.no_grad()
def s2o_prefill(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    settings: S2OSettings,
    sinks: torch.Tensor | None = None,
    tile: int | None = None,
) -> tuple[torch.Tensor, PairStats]:
    """
    See `reference.s2o_prefill`. `granule` is a multiple of 16; `tile` is 1 or, with a granule of `UNIT` keys, `TILE`;
    by default the faster one.
    """
    batch, heads, q_len, _ = query.shape
    kv_heads, kv_len, value_dim = key.shape[1], key.shape[2], value.shape[3]
    segment, granule = settings.segment, settings.granule
    if tile is None:  # AMX sums over 32 keys: of granules of 16 it would need two that are neighbours
        tile = TILE if query.dtype == torch.bfloat16 and granule == UNIT and has_amx() else 1
    in_bfloat16 = tile > 1 or (query.dtype == torch.bfloat16 and has_bfloat16())
    dtype = torch.bfloat16 if in_bfloat16 else torch.float32
    given = query.dtype
    # Contiguous, so that no result hangs on how the inputs lie in memory.
    query, key, value = (_widened(x, LANES if tile == 1 else UNIT).to(dtype).contiguous() for x in (query, key, value))
    grouped = query.unflatten(1, (kv_heads, -1))  # [B, Hkv, ratio, q_len, D]
    out = torch.empty(*grouped.shape[:4], value.shape[3], dtype=given, device="cpu")
    spans = segment_spans(q_len, kv_len, segment)
    rule = _Rule(scale, settings)
    no_sinks = torch.full((heads // kv_heads,), -torch.inf, dtype=torch.float32, device="cpu")

    def prepare(head: tuple[int, int]) -> _Past:
        return _Past.of(grouped[head], key[head], value[head], settings, tile)

    def attend(item: tuple[tuple[int, int], _Past, tuple[int, int]]) -> tuple[int, float]:
        head, past, (begin, end) = item
        rows = slice(begin - (kv_len - q_len), end - (kv_len - q_len))
        first = begin // segment * segment
        queries = grouped[head][:, rows]
        sink = no_sinks if sinks is None else sinks.float().view(kv_heads, -1)[head[1]]
        sink = sink.repeat_interleave(end - begin)
        if tile == 1:
            near, lse = _attend_near(queries, key[head][first:end], value[head][first:end], scale)
            if sinks is not None:
                near, lse = join_sink(near, lse, sink)
            result, visited, missed = rule.attend_rows(queries.flatten(0, 1), near, lse, past, first // granule)
        else:
            result, visited, missed = rule.attend_tiles(queries, sink, past, first, begin)
        out[head][:, rows] = result.view(-1, end - begin, value.shape[3])
        near_pairs = count_causal_pairs(end - begin, end - first) + (end - begin) * (first // granule)
        return near_pairs * (heads // kv_heads) + visited * (granule - 1), missed

    every_head = [(b, h) for b in range(batch) for h in range(kv_heads)]
    pasts = map_on_threads(prepare, every_head)
    # Late segments first: they take longest, and should not be what all wait for in the end.
    items = [(head, past, span) for span in reversed(spans) for head, past in zip(every_head, pasts, strict=True)]
    pairs, missed = (sum(column) for column in zip(*map_on_threads(attend, items), strict=True))
    stats = PairStats(pairs, batch * heads * count_causal_pairs(q_len, kv_len), missed, batch * heads * q_len)
    return out.flatten(1, 2)[..., :value_dim], stats


def _widened(tensor: torch.Tensor, unit: int) -> torch.Tensor:
    """Zeros make the last dimension a multiple of `unit`; they change neither logits nor outputs."""
    missing = -tensor.shape[-1] % unit
    return F.pad(tensor, (0, missing)) if missing else tensor


def _attend_near(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Exact causal attention of `queries [ratio, S, D]`, the last S positions of `keys [n, D]` and `values [n, Dv]`.

    Returns:
        out `[ratio * S, Dv]` in the dtype of `queries`, and log sum exp `[ratio * S]` in float32.
    """
    value_dim = values.shape[1]
    width = max(keys.shape[1], value_dim)  # torch's kernel wants one width
    queries, keys, values = (F.pad(x, (0, width - x.shape[-1])) for x in (queries, keys, values))
    ratio, count, _ = queries.shape
    offset = keys.shape[0] - count
    pieces = []
    # Torch's kernel computes what it masks: a step's last keys are the only ones that some of its rows do not see.
    for begin in range(0, count, NEAR_ROWS):
        rows = queries[None, :, begin : begin + NEAR_ROWS]
        seen = offset + begin + rows.shape[2]
        own = [x[:seen].expand(1, ratio, seen, width) for x in (keys, values)]
        mask = _causal_mask(rows.shape[2], queries.dtype)
        mask = F.pad(mask, (seen - rows.shape[2], 0))
        pieces.append(
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(rows, *own, attn_mask=mask, scale=scale)
        )
    out, lse = (torch.cat(parts, 2) for parts in zip(*pieces, strict=True))
    return out[..., :value_dim].flatten(0, 2), lse.flatten()


@functools.cache
def _causal_mask(size: int, dtype: torch.dtype) -> torch.Tensor:
    """`[1, 1, size, size]`: 0 where row i sees key j <= i, -inf elsewhere."""
    return torch.full((1, 1, size, size), -torch.inf, dtype=dtype, device="cpu").triu(1)


@dataclass(frozen=True)
class _Past:
    """
    One KV head, cut into granules.

    Attributes:
        frame (`[D, D]`): takes queries to where the variance is counted.
        mean, variance (`[G, D]`), mean_value (`[G, Dv]`): of the granules, in the dtype of the keys.
        scattered (int64): the granules that every query visits.
        keys, values: of all granules, one vector that nobody attends, so that tiles may take odd ones in pairs, and
            the odd keys of all blocks; in vectors of 16 keys, two of which lie as AMX takes them.
        near_keys, near_values: for tiles, all keys in sequence, laid out likewise.
    """

    frame: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    mean_value: torch.Tensor
    scattered: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    near_keys: torch.Tensor
    near_values: torch.Tensor

    @classmethod
    def of(
        cls, queries: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: S2OSettings, tile: int
    ) -> "_Past":
        """From `queries [ratio, q_len, D]`, `key [n, D]` and `value [n, Dv]` of one KV head."""
        frame = frame_of(queries[None], key[None])
        cut = cut_into_granules(key[None], value[None], frame.keys, settings.segment, settings.granule)
        order, odd, mean, variance, mean_value, scattered = (part[0] for part in cut)
        odd_lanes = _whole_vectors(odd.view(-1, settings.segment // settings.granule))
        lanes = torch.cat([_whole_vectors(order), odd_lanes[:LANES], odd_lanes])
        keys, values = (x.index_select(0, lanes) for x in (key, value))
        placing = frame.queries[0].to(key.dtype)
        mean, variance, mean_value = (x.to(key.dtype) for x in (mean, variance, mean_value))
        scattered = scattered.nonzero().flatten()
        packed = _pack_keys(keys), _pack_values(values)
        key, value = (F.pad(x, (0, 0, 0, -len(x) % UNIT)) if tile > 1 else x[:0] for x in (key, value))
        near = _pack_keys(key), _pack_values(value)
        return cls(placing, mean, variance, mean_value, scattered, *packed, *near)


def _whole_vectors(positions: torch.Tensor) -> torch.Tensor:
    """`[groups, n]`, flat, each group filled up with its last position: `walk` passes over what is too much."""
    missing = -positions.shape[1] % LANES
    return torch.cat([positions, positions[:, -1:].expand(-1, missing)], 1).flatten()


def _pack_keys(keys: torch.Tensor) -> torch.Tensor:
    """`[n, D]` to one lane per key: `[vectors, D, 16]`; of bfloat16 two make one int32, `[vectors, D / 2, 16]`."""
    return _paired(keys).unflatten(0, (-1, LANES)).mT.contiguous()


def _pack_values(values: torch.Tensor) -> torch.Tensor:
    """`[n, Dv]` as it is; of bfloat16 those of two keys make one int32, `[n / 2, Dv]`."""
    if values.dtype != torch.bfloat16:
        return values
    packed = values.new_empty(len(values) // 2, values.shape[1], 2)
    packed[..., 0], packed[..., 1] = values[0::2], values[1::2]
    return _paired(packed.flatten(1))


def _paired(tensor: torch.Tensor) -> torch.Tensor:
    """float32 as it is, or pairs of bfloat16 as one int32."""
    return tensor.view(torch.int32) if tensor.dtype == torch.bfloat16 else tensor


class _Rule:
    """How rows judge granules, and what follows from it for a segment."""

    def __init__(self, scale: float, settings: S2OSettings):
        self.settings = settings
        may_miss = -1.0 if settings.target_mass is None else 1 - settings.target_mass
        count = settings.granule - 1
        log_size = math.log(count)
        critical = math.sqrt(2 * log_size)
        self.numbers = np.array([scale, count, settings.tau, may_miss, log_size, critical], dtype=np.float32)

    def attend_rows(
        self, queries: torch.Tensor, near_out: torch.Tensor, near_lse: torch.Tensor, past: _Past, count: int
    ) -> tuple[torch.Tensor, int, float]:
        """
        Output `[R, Dv]` of `queries [R, D]` over the near keys, told by their output and lse, and the first
        `count` granules; visited (row, granule) pairs, and the sum of the missed mass.
        """
        if count == 0:
            return near_out, 0, 0.0
        scores, bounds, weights = self._compare(queries, past, count)
        acc = torch.zeros(len(queries), past.values.shape[1], dtype=torch.float32, device="cpu")
        shares = torch.empty(4, len(queries), dtype=torch.float32, device="cpu")
        vectors = self.settings.granule // LANES
        block = self.settings.segment // self.settings.granule
        attend_rows(
            _paired(queries).flatten().numpy(),
            Judging(
                *(_bits(scores), _bits(bounds), count, past.scattered[past.scattered < count].numpy()),
                *(near_lse.numpy(), self.numbers, self.settings.compensate),
            ),
            Packed(
                past.keys.flatten().numpy(),
                past.values.flatten().numpy(),
                len(past.mean) * vectors + 1,
                vectors,
                block,
                (0,) * (queries.shape[1] // LANES),
                (0,) * (acc.shape[1] // LANES),
            ),
            Outputs(_bits(weights), acc.numpy(), shares.numpy()),
        )
        near_share, total, missed, chosen = shares
        acc.addcmul_(near_out.float(), near_share[:, None]).add_(weights[:, :count] @ past.mean_value[:count])
        visited = int(chosen.sum(dtype=torch.float64))
        return acc.div_(total[:, None]), visited, float(missed.sum(dtype=torch.float64))

    def attend_tiles(
        self, queries: torch.Tensor, sinks: torch.Tensor, past: _Past, first: int, begin: int
    ) -> tuple[torch.Tensor, int, float]:
        """
        Likewise, of `queries [ratio, S, D]` at `begin` and after in a segment that begins at `first`, whose logits
        `sinks [ratio * S]` join the softmax.
        """
        rows, end, count = queries.flatten(0, 1), begin + queries.shape[1], first // self.settings.granule
        scores, bounds, weights = self._compare(rows, past, count)
        acc = torch.empty(len(rows), past.values.shape[1], dtype=torch.float32, device="cpu")
        shares = torch.empty(3, len(rows), dtype=torch.float32, device="cpu")
        near = slice(first // LANES, -(-end // UNIT) * (UNIT // LANES))
        pairs = slice(near.start * LANES // 2, near.stop * LANES // 2)
        attend_tiles(
            *(_bits(scores), _bits(bounds), count, past.scattered[past.scattered < count].numpy()),
            *(sinks.numpy(), self.numbers, self.settings.compensate, _bits(rows)),
            *(past.near_keys[near].flatten().numpy(), past.near_values[pairs].flatten().numpy()),
            *(begin - first, queries.shape[1], past.keys.flatten().numpy(), past.values.flatten().numpy()),
            *(
                len(past.mean) * (UNIT // LANES) + 1,
                self.settings.segment // self.settings.granule,
                palette() if has_amx() else None,
            ),
            *((0,) * (rows.shape[1] // UNIT), _bits(weights), acc.numpy(), shares.numpy()),
        )
        total, missed, chosen = shares
        acc.add_(weights[:, :count] @ past.mean_value[:count])
        visited = int(chosen.sum(dtype=torch.float64))
        return acc.div_(total[:, None]), visited, float(missed.sum(dtype=torch.float64))

    def _compare(
        self, queries: torch.Tensor, past: _Past, count: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Products of `queries [R, D]` with the first `count` granules' means, of their squares with variances, and room
        for weights. In whole vectors of granules: what lies beyond `count` has no mass.
        """
        scores, bounds, weights = (queries.new_empty(len(queries), -(-count // LANES) * LANES) for _ in range(3))
        scores[:, count:], bounds[:, count:] = -torch.inf, 0
        weights[:, count:] = 0  # torch's product on AMX takes numbers in pairs, and reads one too many
        torch.mm(queries, past.mean[:count].T, out=scores[:, :count])
        torch.mm((queries @ past.frame).square(), past.variance[:count].T, out=bounds[:, :count])
        return scores, bounds, weights


def _bits(tensor: torch.Tensor) -> np.ndarray:
    """For numba: float32, or the bits of bfloat16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
