"""
S2O prefill on a GPU, with the semantics of `reference.s2o_prefill(tile=...)`.

Not yet run on a GPU: tested in Triton's interpreter and compiled ahead of time (`kernels/aot.py`); the block sizes
follow from counted bytes, instructions and registers, not from a measurement.

Torch's batched operations cut the past into granules and order the rows of every segment by likeness, in
`granules.py`; the kernel sees index arrays, and no key is moved. A program takes a tile of like rows, of all query
heads on a KV head, through four passes: the near keys, which are the segment's own and the odd ones; the estimated
masses of all granules, for the rows' totals; the tile's decisions, where unvisited granules enter by their means and
visited ones go on a list; and the list. Estimates are computed twice: to write them down would move more bytes than to
read the means again. With `target_mass` they are computed once more, before the decisions, to write down what each
granule promises and holds for the tile as a whole, and the threshold is found in that.

A tile's list is in memory. The lists of all tiles would be larger than queries and keys together, so that long prompts
take several launches, which share the memory of one.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.runtime import driver

from ..pairs import PairStats, count_causal_pairs
from .granules import cut_into_granules, order_by_likeness
from .reference import MAX_LIFT, TARGET_BINS, frame_of, segment_spans
from .settings import S2OSettings

MAX_HEAD_DIM = 256  # beyond it, a program's tiles no longer fit in registers
LOG2_E = 1.4426950408889634  # logits in base 2: the hardware's exponential is exp2
ORDERED_AT_ONCE = 2**26  # numbers of query rows: ordering makes a few float32 copies of them, 256 MiB each
LISTED_AT_ONCE = 2**26  # granules of the tiles of one launch: 256 MiB of lists, 512 MiB more with target_mass
LEAST_TILE, MOST_GRANULE = 16, 32  # rows that a matrix unit takes; keys that are attended at a time, at the least

# ---------------------------------------------------------------- on the device

_BINS = tl.constexpr(TARGET_BINS)


@triton.jit
def _load_rows(rows, index, inside, DIM: tl.constexpr):
    """Rows `index [N]` of `[*, DIM]`, padded with zeros to a power of two; zeros where not `inside`."""
    channel = tl.arange(0, triton.next_power_of_2(DIM))
    where = rows + index[:, None] * DIM + channel[None, :]
    return tl.load(where, inside[:, None] & (channel < DIM)[None, :], 0.0)


@triton.jit
def _attend(
    query, m, l, acc, key, value, scale, position, last, end, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr
):  # fmt: skip
    """One step of the running softmax: keys at `position [N]` before `end`; a row sees those up to `last [M]`."""
    keys = _load_rows(key, position, position < end, HEAD_DIM)
    scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where(position[None, :] <= last[:, None], scores, float("-inf"))
    new_m = tl.maximum(m, tl.max(scores, 1))
    weights = tl.exp2(scores - new_m[:, None])
    shrink = tl.exp2(m - new_m)
    l = l * shrink + tl.sum(weights, 1)
    values = _load_rows(value, position, position < end, VALUE_DIM)
    acc = tl.dot(weights.to(values.dtype), values, acc=acc * shrink[:, None], input_precision="ieee")
    return new_m, l, acc


@triton.jit
def _attend_near(
    query, m, l, key, value, order, scale, last, first_key, end, num_past,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, GRANULE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """
    What every row attends, besides the mass `l * 2^m` of a value of zero: the odd keys of the past, and its own
    segment, from `first_key` up to itself.
    """
    acc = tl.zeros([query.shape[0], triton.next_power_of_2(VALUE_DIM)], tl.float32)
    for first in range(0, num_past + tl.max(last, 0) + 1 - first_key, BLOCK_N):
        index = first + tl.arange(0, BLOCK_N)
        odd = tl.load(order + index * GRANULE, index < num_past, 0)
        position = tl.where(index < num_past, odd, first_key + index - num_past)
        m, l, acc = _attend(query, m, l, acc, key, value, scale, position, last, end, HEAD_DIM, VALUE_DIM)
    return m, l, acc


@triton.jit
def _estimate(
    query, square, mean, variance, granule, is_granule,
    scale, spread_scale, max_lift, log_count, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """log2 of the mass that each row expects of each granule, and the lift in it; see `reference.judge`."""
    means = _load_rows(mean, granule, is_granule, HEAD_DIM)
    variances = _load_rows(variance, granule, is_granule, HEAD_DIM)
    centre = tl.dot(query, tl.trans(means), input_precision="ieee") * scale + log_count
    spread = tl.sqrt(tl.dot(square, tl.trans(variances), input_precision="ieee") * spread_scale)
    uncritical = tl.minimum(spread, tl.sqrt(2 * log_count))
    lift = tl.minimum(uncritical * (spread - uncritical * 0.5), max_lift)
    return centre + lift, lift


@triton.jit
def _weigh_past(
    query, square, m, l, mean, variance, scale, spread_scale, max_lift, log_count, num_past,
    HEAD_DIM: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Each row's total: log2 of the mass `l * 2^m` of what it has attended plus the estimated mass of its past."""
    for first in range(0, num_past, BLOCK_G):
        granule = first + tl.arange(0, BLOCK_G)
        is_granule = granule < num_past
        lse, _ = _estimate(
            query, square, mean, variance, granule, is_granule, scale, spread_scale, max_lift, log_count, HEAD_DIM
        )
        lse = tl.where(is_granule[None, :], lse, float("-inf"))
        new_m = tl.maximum(m, tl.max(lse, 1))
        l = l * tl.exp2(m - new_m) + tl.sum(tl.exp2(lse - new_m[:, None]), 1)
        m = new_m
    return m + tl.log2(l)


@triton.jit
def _promise(
    query, square, is_row, total, mean, variance, scattered, granule, is_granule,
    scale, spread_scale, max_lift, log_count, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """
    The mass that each row expects of each granule, a share of 2^`total`, and what the tile's visit may change: squared
    promises, times n and summed over rows. Infinity, which no threshold exceeds, where a granule is scattered or the
    estimate is not to be trusted.
    """
    lse, lift = _estimate(
        query, square, mean, variance, granule, is_granule, scale, spread_scale, max_lift, log_count, HEAD_DIM
    )
    # With x = exp(lift), the squared promise is mass^2 (x^2 - 1) / n. Never negative: tau = 0 visits all. Neither mass
    # nor x is squared by itself: what is tiny or huge would leave float32.
    mass = tl.where(is_row[:, None], tl.exp2(lse - total[:, None]), 0.0)
    lifted = tl.exp2(lift)
    change = mass * (lifted - 1) * (mass * (lifted + 1))
    change = tl.sum(tl.where(lift < max_lift, change, float("inf")), 0)
    return mass, tl.where(tl.load(scattered + granule, is_granule, 0), float("inf"), change)


@triton.jit
def _note_past(
    query, square, is_row, total, mean, variance, scattered, changes, masses,
    scale, spread_scale, max_lift, log_count, num_past,
    HEAD_DIM: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Writes down for each granule what the tile's visit may change, and its mass, both summed over rows."""
    for first in range(0, num_past, BLOCK_G):
        granule = first + tl.arange(0, BLOCK_G)
        is_granule = granule < num_past
        mass, change = _promise(
            query, square, is_row, total, mean, variance, scattered, granule, is_granule,
            scale, spread_scale, max_lift, log_count, HEAD_DIM,
        )  # fmt: skip
        tl.store(changes + granule, change, is_granule)
        tl.store(masses + granule, tl.sum(mass, 0), is_granule)


@triton.jit
def _lower(least, changes, masses, unit, may_miss, num_past):
    """`least`, or less: the largest `unit / 2^b`, with b up to _BINS, that leaves at most `may_miss` of the masses."""
    BLOCK: tl.constexpr = 1024
    low, high = 0, tl.full([], _BINS, tl.int32)
    while low < high:
        middle = (low + high) // 2
        limit = unit * tl.exp2(-middle.to(tl.float32))
        left = tl.zeros([BLOCK], tl.float32)
        for first in range(0, num_past, BLOCK):
            granule = first + tl.arange(0, BLOCK)
            change = tl.load(changes + granule, granule < num_past, float("inf"))
            left += tl.where(change < limit, tl.load(masses + granule, granule < num_past, 0.0), 0.0)
        is_enough = tl.sum(left, 0) <= may_miss
        high = tl.where(is_enough, middle, high)
        low = tl.where(is_enough, low, middle + 1)
    return tl.minimum(least, unit * tl.exp2(-high.to(tl.float32)))


@triton.jit
def _judge_past(
    query, square, is_row, total, l, acc, mean, variance, scattered, mean_value, visits, least,
    scale, spread_scale, max_lift, log_count, compensate, num_past,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """
    Lists in `visits` the granules that may change `least` or more; counts them.

    The others enter `l` and `acc`, which are relative to 2^`total`. No estimate exceeds that, so nothing is rescaled.
    Returns also each row's mass that was left unvisited.
    """
    num_visits = 0
    left = tl.zeros_like(l)
    for first in range(0, num_past, BLOCK_G):
        granule = first + tl.arange(0, BLOCK_G)
        is_granule = granule < num_past
        mass, change = _promise(
            query, square, is_row, total, mean, variance, scattered, granule, is_granule,
            scale, spread_scale, max_lift, log_count, HEAD_DIM,
        )  # fmt: skip
        is_visited = change >= least
        mass = tl.where((is_granule & ~is_visited)[None, :], mass, 0.0)
        left += tl.sum(mass, 1)
        mass *= compensate
        values = _load_rows(mean_value, granule, is_granule, VALUE_DIM)
        acc = tl.dot(mass.to(values.dtype), values, acc=acc, input_precision="ieee")
        is_visited &= is_granule
        place = num_visits + tl.cumsum(is_visited.to(tl.int32), 0) - 1
        tl.store(visits + place, granule, is_visited)
        num_visits += tl.sum(is_visited.to(tl.int32), 0)
    return l + left * compensate, acc, num_visits, left


@triton.jit
def _attend_visits(
    query, m, l, acc, key, value, order, visits, num_visits, scale, last, end,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, GRANULE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The listed granules without their odd keys, which were near, as many granules at a time as make BLOCK_N keys."""
    slot = tl.arange(0, BLOCK_N)
    for first in range(0, num_visits, BLOCK_N // GRANULE):
        index = first + slot // GRANULE
        is_key = (index < num_visits) & (slot % GRANULE > 0)
        granule = tl.load(visits + index, is_key, 0)
        position = tl.load(order + granule * GRANULE + slot % GRANULE, is_key, end)
        m, l, acc = _attend(query, m, l, acc, key, value, scale, position, last, end, HEAD_DIM, VALUE_DIM)
    return m, l, acc


# Lengths change with every prompt; a kernel compiled for multiples of 16 would be compiled again on the way.
@triton.jit(do_not_specialize=["first_item", "num_tiles", "first_tiles", "q_len", "kv_len", "num_granules"])
def _attend_tiles(
    query, square, key, value, sinks, row_order, order, mean, variance, mean_value, scattered, visits, judged,
    out, visited, missed,
    scale, spread_scale, max_lift, log_count, tau, may_miss, compensate,
    first_item, num_tiles, first_tiles, q_len, kv_len, num_granules,
    RATIO: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, SEGMENT: tl.constexpr,
    GRANULE: tl.constexpr, TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """A program writes the output rows of one item, which is a tile of a KV head."""
    TILES: tl.constexpr = (RATIO * SEGMENT + TILE - 1) // TILE
    visits += tl.program_id(0).to(tl.int64) * num_granules
    start = kv_len - q_len
    item = first_item + tl.program_id(0)
    # One head after the other, so that its granules stay in the cache, and its late segments first: they are long.
    head = (item // num_tiles).to(tl.int64)
    tile = num_tiles - 1 - item % num_tiles
    later = tl.maximum(tile - first_tiles + TILES, 0) // TILES  # how many segments after the first
    tile -= tl.where(later > 0, first_tiles + (later - 1) * TILES, 0)
    segment = start // SEGMENT + later
    begin = tl.maximum(segment * SEGMENT, start)
    end = tl.minimum(segment * SEGMENT + SEGMENT, kv_len)
    length = end - begin

    num_rows = tl.minimum(length * RATIO - tile * TILE, TILE)
    is_row = tl.arange(0, TILE) < num_rows
    # Rows that are missing repeat the last one: all they compute is finite, and none of it is counted.
    tile_order = row_order + (head * q_len + begin - start) * RATIO + tile * TILE
    tile_order += tl.minimum(tl.arange(0, TILE), num_rows - 1)
    row = tl.load(tile_order)
    last = begin + row % length
    m = tl.full([TILE], float("-inf"), tl.float32)
    l = tl.zeros([TILE], tl.float32)
    if sinks is not None:
        m = tl.load(sinks + head * RATIO + row // length)
        l += 1
    # Counted within the head, since it stays in registers to the end: there 64 bits would be too many.
    row = row // length * q_len + last - start
    first_row = head * RATIO * q_len
    rows = _load_rows(query + first_row * HEAD_DIM, row.to(tl.int64), row >= 0, HEAD_DIM)
    squares = _load_rows(square + first_row * HEAD_DIM, row.to(tl.int64), row >= 0, HEAD_DIM)

    here = head * num_granules
    keys, values = key + head * kv_len * HEAD_DIM, value + head * kv_len * VALUE_DIM
    orders, means, variances = order + here * GRANULE, mean + here * HEAD_DIM, variance + here * HEAD_DIM
    num_past = segment * (SEGMENT // GRANULE)
    m, l, acc = _attend_near(
        rows, m, l, keys, values, orders, scale, last, segment * SEGMENT, end, num_past,
        HEAD_DIM, VALUE_DIM, GRANULE, BLOCK_N,
    )  # fmt: skip
    total = _weigh_past(
        rows, squares, m, l, means, variances, scale, spread_scale, max_lift, log_count, num_past, HEAD_DIM, BLOCK_G
    )
    unit = num_rows * (GRANULE - 1.0)  # what a promise of 1 changes, by the judge's measure
    least = tau * tau * unit
    if judged is not None:
        changes = judged + tl.program_id(0).to(tl.int64) * 2 * num_granules
        masses = changes + num_granules
        _note_past(
            rows, squares, is_row, total, means, variances, scattered + here, changes, masses,
            scale, spread_scale, max_lift, log_count, num_past,
            HEAD_DIM, BLOCK_G,
        )  # fmt: skip
        tl.debug_barrier()  # each thread reads what others wrote
        least = _lower(least, changes, masses, unit, may_miss * num_rows, num_past)
    shrink = tl.exp2(m - total)
    l, acc, num_visits, left = _judge_past(
        rows, squares, is_row, total, l * shrink, acc * shrink[:, None], means, variances, scattered + here,
        mean_value + here * VALUE_DIM, visits, least,
        scale, spread_scale, max_lift, log_count, compensate, num_past,
        HEAD_DIM, VALUE_DIM, BLOCK_G,
    )  # fmt: skip
    tl.debug_barrier()  # the list is written: each thread reads what others wrote
    m, l, acc = _attend_visits(
        rows, total, l, acc, keys, values, orders, visits, num_visits, scale, last, end,
        HEAD_DIM, VALUE_DIM, GRANULE, BLOCK_N,
    )  # fmt: skip

    channel = tl.arange(0, acc.shape[1])
    where = out + (first_row + row)[:, None] * VALUE_DIM + channel[None, :]
    tl.store(where, (acc / l[:, None]).to(out.dtype.element_ty), is_row[:, None] & (channel < VALUE_DIM)[None, :])
    tl.store(visited + item, num_visits * num_rows)
    left *= tl.exp2(total - m)
    tl.store(missed + item, tl.sum(tl.where(is_row, left / (l + left * (1 - compensate)), 0.0), 0))


# ---------------------------------------------------------------- on the host


def s2o_prefill(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    settings: S2OSettings,
    sinks: torch.Tensor | None = None,
    tile: int = 64,
) -> tuple[torch.Tensor, PairStats]:
    """
    `reference.s2o_prefill` for rows in tiles. The numbers in the stats are tensors on the device: none is waited for.
    """
    batch, heads, q_len, head_dim = query.shape
    kv_len, segment, granule = key.shape[2], settings.segment, settings.granule
    if max(head_dim, value.shape[3]) > MAX_HEAD_DIM or (query.is_cuda and query.dtype == torch.float32):
        raise ValueError(
            f"S2O's Triton kernel attends in float16 or bfloat16 up to head_dim {MAX_HEAD_DIM}, not in {query.dtype} "
            f"with head_dim {max(head_dim, value.shape[3])}. Use kernels.s2o.reference.s2o_prefill."
        )
    if granule & (granule - 1) or not 2 <= granule <= MOST_GRANULE or tile & (tile - 1) or tile < LEAST_TILE:
        raise ValueError(
            f"S2O's Triton kernel takes powers of two: granules of 2 to {MOST_GRANULE} keys and tiles of at least "
            f"{LEAST_TILE} rows, not granule={granule} and tile={tile}. Use kernels.s2o.reference.s2o_prefill."
        )
    with torch.no_grad():
        out, visited, missed = _prefill(query, key, value, sinks, scale, settings, tile)
    near = sum(
        count_causal_pairs(end - begin, end - begin // segment * segment)
        + (end - begin) * (begin // segment * segment // granule)
        for begin, end in segment_spans(q_len, kv_len, segment)
    )
    pairs = batch * heads * near + visited * (granule - 1)
    return out, PairStats(pairs, batch * heads * count_causal_pairs(q_len, kv_len), missed, batch * heads * q_len)


def _prefill(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    scale: float,
    settings: S2OSettings,
    tile: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output, (row, granule) pairs visited, and missed mass; the latter two without dimensions."""
    batch, heads, q_len, head_dim = query.shape
    kv_heads, kv_len, value_dim = key.shape[1], key.shape[2], value.shape[3]
    ratio, segment, granule = heads // kv_heads, settings.segment, settings.granule
    queries = query.contiguous().view(batch * kv_heads, ratio, q_len, head_dim)
    keys, values = (tensor.contiguous().flatten(0, 1) for tensor in (key, value))
    frame = frame_of(queries, keys)
    granules = cut_into_granules(keys, values, frame.keys, segment, granule)
    squares = _squares_in(frame.queries, queries)
    order = torch.cat([granules.odd[..., None], granules.order], -1).int()  # [heads, G, granule], odd keys first
    num_granules = order.shape[1]
    # In the dtype of the keys, which are no more exact than that themselves.
    mean, variance, mean_value = (part.to(key.dtype) for part in (granules.mean, granules.variance, granules.value))
    if sinks is not None:
        sinks = (sinks.float() * LOG2_E).repeat(batch)
    row_order = order_rows(queries, kv_len - q_len, segment, tile)

    tiles = [triton.cdiv((end - begin) * ratio, tile) for begin, end in segment_spans(q_len, kv_len, segment)]
    num_items = batch * kv_heads * sum(tiles)
    at_once = min(num_items, max(1, LISTED_AT_ONCE // max(1, num_granules)))
    visits = order.new_empty(at_once, num_granules)
    judged = None if settings.target_mass is None else visits.new_empty(at_once, 2, num_granules, dtype=torch.float32)
    out = query.new_empty(batch, heads, q_len, value_dim)
    visited, missed = order.new_empty(num_items), mean.new_empty(num_items, dtype=torch.float32)
    blocks = choose_blocks(tile, head_dim, value_dim, settings.target_mass, sinks)
    may_miss = None if settings.target_mass is None else 1 - settings.target_mass
    for first_item in range(0, num_items, at_once):
        _attend_tiles[(min(at_once, num_items - first_item),)](
            queries, squares, keys, values, sinks, row_order, order, mean, variance, mean_value, granules.scattered,
            visits, judged, out, visited, missed,
            # In base 2; the spread is made of products without scale.
            scale * LOG2_E, scale**2 * LOG2_E, MAX_LIFT * LOG2_E, math.log2(granule - 1),
            settings.tau, may_miss, float(settings.compensate),
            first_item, sum(tiles), tiles[0], q_len, kv_len, num_granules,
            RATIO=ratio, HEAD_DIM=head_dim, VALUE_DIM=value_dim, SEGMENT=segment, GRANULE=granule, TILE=tile,
            BLOCK_N=blocks.keys, BLOCK_G=blocks.granules, num_warps=blocks.num_warps, num_stages=blocks.num_stages,
        )  # fmt: skip
    return out, visited.sum(), missed.sum()


def _squares_in(frame: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Squares of `queries [H, ratio, q_len, D]` in their frame `[H, D, D]`, where float16 holds them."""
    squares = torch.empty_like(queries)
    for at, head in enumerate(queries):  # one at a time: in float32 all would take twice their memory
        squares[at] = (head.float() @ frame[at]).square().clamp(max=torch.finfo(queries.dtype).max)
    return squares


def order_rows(queries: torch.Tensor, start: int, segment: int, tile: int) -> torch.Tensor:
    """
    The rows of each segment in tiles of like rows; `queries [H, ratio, q_len, D]` begin at position `start`.

    Returns:
        `torch.Tensor` of int32 `[H, q_len * ratio]`, one segment after the other: indices into its `[ratio, rows]`.
    """
    num_heads, ratio, q_len, dim = queries.shape
    cut = min(-start % segment, q_len)  # rows of a first segment that the queries enter half-way
    orders = []
    for part in queries.split([cut, (q_len - cut) // segment * segment, (q_len - cut) % segment], dim=2):
        span = min(segment, part.shape[2])
        if span:
            rows = part.unflatten(2, (-1, span)).transpose(1, 2).reshape(-1, ratio * span, dim)
            orders.append(_order_by_likeness(rows, tile).view(num_heads, -1))
    return torch.cat(orders, 1).int()


def _order_by_likeness(rows: torch.Tensor, tile: int) -> torch.Tensor:
    """`[N, rows]` for `rows [N, rows, D]`. As in the reference, what does not halve down to a tile stays as it is."""
    batch, size, dim = rows.shape
    if size & -size < tile:
        return torch.arange(size, device=rows.device).repeat(batch, 1)
    at_once = max(1, ORDERED_AT_ONCE // (size * dim))
    return torch.cat([order_by_likeness(some.float(), tile) for some in rows.split(at_once)])


class Blocks(NamedTuple):
    """How the kernel is cut: keys, and granules to judge, at a time; warps and stages of a program."""

    keys: int
    granules: int
    num_warps: int
    num_stages: int


def choose_blocks(
    tile: int, head_dim: int, value_dim: int, target_mass: float | None, sinks: torch.Tensor | None
) -> Blocks:
    """
    What fits in the registers of every GPU in `kernels/aot.py`: the output takes tile * value_dim of them in any case,
    masks of padded channels, sinks and the pass for `target_mass` take some, and judging needs two products for a
    granule where attention has one for a key.
    2 stages: a step's rows are under way while the step before is computed.
    """
    is_large = tile > 64 or max(head_dim, value_dim) > 128
    is_padded = any(dim & (dim - 1) for dim in (head_dim, value_dim))
    is_tight = is_large or is_padded or target_mass is not None or sinks is not None
    lanes = 32 if knobs.runtime.interpret else driver.active.get_current_target().warp_size
    return Blocks(
        keys=32 if max(head_dim, value_dim) >= 128 or is_tight else 64,
        granules=16 if max(head_dim, value_dim) > 128 or is_padded else 32,
        num_warps=(256 if is_large else 128) // lanes,
        num_stages=2,
    )


# ---------------------------------------------------------------- for kernels/aot.py


def example_calls() -> None:
    """Calls on tensors without data that launch the kernel in every configuration that there is."""
    tokens, kv_heads = 8192, 2
    empty = partial(torch.empty, device="meta")
    for dtype, head_dim, ratio, tile, granule, sinks in (
        (torch.bfloat16, 128, 4, 64, 32, None),
        (torch.bfloat16, 128, 4, 128, 32, None),
        (torch.bfloat16, 128, 4, 64, 16, None),
        (torch.float16, 64, 8, 64, 32, None),
        (torch.bfloat16, 64, 8, 64, 32, empty(kv_heads * 8)),
        (torch.bfloat16, 96, 1, 64, 32, None),
        (torch.bfloat16, 256, 2, 64, 32, None),
    ):
        query = empty(1, kv_heads * ratio, tokens, head_dim, dtype=dtype)
        key = empty(1, kv_heads, tokens, head_dim, dtype=dtype)
        for target_mass in (None, 0.99):
            _prefill(query, key, key, sinks, 0.1, S2OSettings(0.01, target_mass, granule=granule), tile)
