"""S2O prefill attention in readable torch: permute the past into granules, visit the promising ones, stop early.

One idea: softmax mass is thin, so a query needs few keys exactly. The past of a segment of queries is permuted into
granules of like keys (`granules.py`). From a granule's mean and variance every query estimates what a visit would
change, the promise. It visits the granules that promise `tau` or more, and what it leaves enters by its mean. Near
keys (those of the query's own segment) and odd keys are attended exactly by all.

In the words of FlashAttention:
- segment: a Q block, whose past is the K blocks before it;
- near keys: the causal diagonal block of the segment, plus the odd keys of its past;
- granule: a K block of permuted keys; its odd key is left out of the permutation;
- lse: log sum exp(logit), of a row's attended keys, or of a granule by estimate;
- promise: the skip criterion of a granule, a share of the row's softmax mass;
- visit: a K block that is not skipped; density is their share of all pairs, with the near keys;
- missed mass: the softmax mass of the skipped K blocks, by estimate;
- tile: rows of a Q block that skip together;
- compensate: a skipped K block enters the running softmax as one key, its mean value weighing exp(lse).

Here a visit is a mask over all logits, so this takes longer than dense attention. It is the oracle of the fast paths.

Source: S2O, arXiv 2602.22575; docs/s2o.md tells where and why this differs.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..pairs import PairStats, count_causal_pairs
from .granules import cut_into_granules, order_by_likeness
from .settings import S2OSettings

SAMPLED = 2048  # queries, and keys, of a head, evenly spread, that tell in which directions all of them lie
TURNS = 4  # towards these directions: with two of them errors are up to twice as large
LEAST_SPREAD = 1e-5  # of queries in any direction, a share of the mean: they may be fewer than dimensions
TINY = torch.finfo(torch.float32).tiny
MAX_LIFT = 60.0  # beyond, an estimate is not to be trusted, and its square would not fit a float32
# Steps of the grid in which `target_mass` looks for a row's threshold: half powers of two down to 2^-40.
TARGET_BINS = 80


@torch.no_grad()
def s2o_prefill(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    settings: S2OSettings,
    sinks: torch.Tensor | None = None,
    tile: int = 1,
    ordered: bool = True,
    record: bool = False,
) -> tuple[torch.Tensor, PairStats]:
    """Causal attention that visits, per query, only those granules of the past that promise to change its output.

    Args:
        query: `[B, H, q_len, D]`, the last `q_len` positions of the sequence.
        key: `[B, Hkv, kv_len, D]` with `kv_len >= q_len` and `H` a multiple of `Hkv`.
        value: `[B, Hkv, kv_len, Dv]`; `Dv` may differ from `D`.
        scale: factor of the logits, usually `D**-0.5`.
        settings: what a row visits.
        sinks: `[H]`, a logit per query head that joins each row's softmax, with a value of zero.
        tile: rows that decide together; 1 lets each decide alone.
        ordered: whether a tile is of like rows of its segment, or else of neighbours.
        record: whether to fill `PairStats.visits`.

    Returns:
        `[B, H, q_len, Dv]` in the dtype of `query` (float32 inside), and what was visited.
    """
    batch, heads, q_len, _ = query.shape
    kv_heads, kv_len = key.shape[1], key.shape[2]
    segment, granule = settings.segment, settings.granule
    grouped = query.unflatten(1, (kv_heads, -1))  # [B, Hkv, ratio, q_len, D]
    out = query.new_empty(*grouped.shape[:4], value.shape[3])
    spans = segment_spans(q_len, kv_len, segment)
    stats = PairStats(0, batch * heads * count_causal_pairs(q_len, kv_len), 0.0, batch * heads * q_len)
    visits = torch.zeros(batch, kv_heads, len(spans), kv_len, dtype=torch.float32, device="cpu") if record else None
    for b in range(batch):
        keys, values = key[b].float(), value[b].float()
        frame = frame_of(grouped[b], keys)
        granules = cut_into_granules(keys, values, frame.keys, segment, granule)
        for index, (begin, end) in enumerate(spans):
            first = begin // segment * segment  # first key of the segment
            for h in range(kv_heads):
                order, odd, mean, variance, mean_value, scattered = (part[h, : first // granule] for part in granules)
                rows = slice(begin - (kv_len - q_len), end - (kv_len - q_len))
                queries = grouped[b, h, :, rows].float() * scale  # [ratio, S, D]
                near = torch.cat([odd, torch.arange(first, end, device=key.device)])
                base = _attend_near(queries, keys[h, near], values[h, near])
                if sinks is not None:
                    own = sinks.float().view(kv_heads, -1)[h].repeat_interleave(queries.shape[1])
                    base = Partial(*join_sink(base.out, base.lse, own))
                flat = queries.flatten(0, 1)  # [R, D]
                squares = (flat @ frame.queries[h]).square()
                promise, lse = judge(flat, squares, mean, variance, base.lse, granule - 1)
                promise = promise.masked_fill(scattered, torch.inf)  # which no threshold exceeds
                share = F.pad(lse, (1, 0)).softmax(-1)[:, 1:]
                if tile > 1:
                    promise, share = _of_tiles(flat, promise, share, tile, ordered)
                visited = promise >= threshold(promise, share, settings)
                result, missed = _attend_past(
                    flat, base, keys[h, order], values[h, order], visited, lse, mean_value, settings.compensate
                )
                out[b, h, :, rows] = result.view(queries.shape[0], -1, values.shape[2]).to(out.dtype)
                pairs = queries.shape[0] * (count_causal_pairs(end - begin, end - first) + (end - begin) * len(odd))
                pairs += int(visited.sum()) * (granule - 1)
                stats += PairStats(pairs, 0, float(missed.sum()), 0)
                if visits is not None:
                    visits[b, h, index, order] = visited.float().mean(0)[:, None].cpu()
                    visits[b, h, index, near] = 1.0
    return out.flatten(1, 2), replace(stats, visits=visits)


def segment_spans(q_len: int, kv_len: int, segment: int) -> list[tuple[int, int]]:
    """Key positions (begin, end) of the queries of each segment, cut at multiples of `segment`."""
    first = kv_len - q_len
    edges = [first, *range((first // segment + 1) * segment, kv_len, segment), kv_len]
    return list(itertools.pairwise(edges)) if q_len else []


class Frame(NamedTuple):
    """
    Coordinates of a head in which its queries spread alike in all directions, so that a distance between keys is what
    queries tell them apart by, and its keys spread in each dimension by itself: q . k = (q @ queries) . (k @ keys).

    Attributes:
        keys, queries (`torch.Tensor` of float32, `[Hkv, D, D]`): what takes keys, and queries, there.
    """

    keys: torch.Tensor
    queries: torch.Tensor


def frame_of(queries: torch.Tensor, keys: torch.Tensor) -> Frame:
    """
    The frame of `queries [Hkv, ratio, q_len, D]`, by the Cholesky factor of their second moment, turned to the
    principal directions of `keys [Hkv, n, D]` in it.
    """
    rows = queries[:, :, :: max(1, queries.shape[2] // SAMPLED)].float().flatten(1, 2)
    moment = rows.mT @ rows / rows.shape[1]
    size = moment.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].nan_to_num(1.0).clamp(min=TINY)
    alone = torch.eye(moment.shape[1], dtype=moment.dtype, device=moment.device)
    factor, _ = torch.linalg.cholesky_ex(moment / size + LEAST_SPREAD * alone)
    factor = _finite_or(alone, factor)
    points = keys[:, :: max(1, keys.shape[1] // SAMPLED)].float() @ factor
    points = points - points.mean(1, keepdim=True)
    turned, covariance = alone.expand_as(factor), points.mT @ points
    # Orthogonal iteration, near enough. An eigensolver would make the host wait for a GPU.
    for _ in range(TURNS):
        turned = torch.linalg.qr(covariance @ turned).Q
    turned = _finite_or(alone, turned)
    inverse = torch.linalg.solve_triangular(factor.mT, turned, upper=True)
    return Frame(factor @ turned * size.sqrt(), inverse / size.sqrt())


def _finite_or(other: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """A NaN in one row tells there, and is not to spread to all rows of its head."""
    return torch.where(matrices.isfinite().flatten(1).all(1)[:, None, None], matrices, other)


@dataclass(frozen=True)
class Partial:
    """Softmax attention over some keys: `out [R, Dv]`, normalized, and `lse [R]` = log sum exp(logit)."""

    out: torch.Tensor
    lse: torch.Tensor


def _attend_near(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Partial:
    """Exact attention of `queries [ratio, S, D]`; the last S of the keys are their own, causal."""
    logits = queries @ keys.T  # [ratio, S, keys]
    future = torch.ones_like(logits[0], dtype=torch.bool).triu(keys.shape[0] - queries.shape[1] + 1)
    logits = logits.masked_fill(future, -torch.inf).flatten(0, 1)
    return Partial(logits.softmax(-1) @ values, logits.logsumexp(-1))


def join_sink(out: torch.Tensor, lse: torch.Tensor, sink: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention `out [R, Dv]` over keys of `lse [R]` and, besides, a logit `sink [R]` with a value of zero."""
    joined = torch.logaddexp(lse, sink)
    return out * (lse - joined).exp()[:, None].to(out.dtype), joined


def judge(
    queries: torch.Tensor,
    squares: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    near_lse: torch.Tensor,
    count: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What each granule may hold for each of `queries [R, D]` (scaled), whose `squares [R, D]` are those in their frame.

    The logits of its n = `count` keys have the mean a = q . mean and, in the frame, dimension by dimension, the
    variance s^2 = sum_d q_d^2 variance_d. Of a Gaussian, with lift = s^2 / 2,
    - mass = n exp(a + lift) is the expected sum of exp(logit), and
    - promise = mass sqrt((exp(2 lift) - 1) / n) is its standard deviation, thus what a visit may change.
    Where s is above its critical value sqrt(2 log n), that expectation rests on keys that n draws do not hold: their
    sum is then its largest term, exp(a + s sqrt(2 log n)) (the random energy model, Derrida 1981). So the lift goes on
    along its tangent from there, which leads just to that. A lift of `MAX_LIFT` promises infinity.

    Returns:
        promise `[R, G]` as a share of the row's estimated mass, and lse `[R, G]` above `near_lse`.
    """
    centre = queries @ mean.T  # [R, G]
    spread = (squares @ variance.T).sqrt()
    uncritical = spread.clamp(max=math.sqrt(2 * math.log(count)))
    lift = (uncritical * (spread - uncritical / 2)).clamp(max=MAX_LIFT)
    lse = centre + lift + math.log(count)
    row_lse = torch.cat([lse, near_lse[:, None]], -1).logsumexp(-1, keepdim=True)
    log_promise = lse + lift + ((-torch.expm1(-2 * lift)).log() - math.log(count)) / 2
    promise = (log_promise - row_lse).exp().masked_fill(lift == MAX_LIFT, torch.inf)
    return promise, lse - near_lse[:, None]


def _of_tiles(
    queries: torch.Tensor, promise: torch.Tensor, share: torch.Tensor, tile: int, ordered: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row gets its tile's root mean square promise and mean share, both `[R, G]`; `ordered`: of like rows."""
    size = len(queries)
    order = torch.arange(size, device=queries.device)
    if ordered and size & -size >= tile:  # what does not halve down to a tile stays as it is
        order = order_by_likeness(queries[None], tile)[0]
    promise, share = promise.clone(), share.clone()
    for rows in order.split(tile):
        promise[rows] = promise[rows].square().mean(0).sqrt()
        share[rows] = share[rows].mean(0)
    return promise, share


def threshold(promise: torch.Tensor, share: torch.Tensor, settings: S2OSettings) -> torch.Tensor | float:
    """
    The promise `[R, 1]` down to which each row visits: `tau`, or less where `target_mass` asks for more.

    Of a grid of half powers of two, that is the largest which leaves at most `1 - target_mass` unvisited of the row's
    mass, of which `share [R, G]` lies in the granules.
    """
    if settings.target_mass is None:
        return settings.tau
    bins = (-2 * promise.log2()).ceil().clamp(0, TARGET_BINS).long()  # bin b holds promises from 2^(-b/2) up
    held = share.new_zeros(share.shape[0], TARGET_BINS + 1).scatter_add_(1, bins, share)
    left = held.sum(-1, keepdim=True) - held.cumsum(-1)  # unvisited, if each bin were the last one visited
    enough = left <= 1 - settings.target_mass
    enough[:, -1] = True
    return torch.exp2(enough.float().argmax(1, keepdim=True) / -2).clamp(max=settings.tau)


def _attend_past(
    queries: torch.Tensor,
    near: Partial,
    keys: torch.Tensor,
    values: torch.Tensor,
    visited: torch.Tensor,
    lse: torch.Tensor,
    mean_value: torch.Tensor,
    compensate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    One softmax over near keys, `keys [G, n, D]` of the granules `visited [R, G]`, and, to compensate, the others by
    their `lse [R, G]` and `mean_value [G, Dv]`. Returns `[R, Dv]` and the missed mass `[R]`, a share.
    """
    logits = queries @ keys.flatten(0, 1).T - near.lse[:, None]  # everything relative to the near mass
    logits = logits.masked_fill(~visited.repeat_interleave(keys.shape[1], 1), -torch.inf)
    logits = F.pad(logits, (1, 0))  # the near mass itself is 1 = exp(0)
    log_left = lse.masked_fill(visited, -torch.inf)
    peak = torch.cat([logits, log_left] if compensate else [logits], -1).amax(-1, keepdim=True)
    weights, left = (logits - peak).exp(), (log_left - peak).exp()
    attended, missed = weights.sum(-1), left.sum(-1)
    out, total = weights[:, :1] * near.out + weights[:, 1:] @ values.flatten(0, 1), attended
    if compensate:
        out, total = out + left @ mean_value, attended + missed
    return out / total[:, None], 1 / (1 + attended / missed)
