"""S2O prefill attention in readable torch: rank the past once per segment, visit it best first, stop early.

One idea: softmax mass is thin, so a query needs few keys, if they come in the right order. The keys before a segment
of queries are ranked once for the whole segment and KV head; every query then walks down that one order and drops out
alone as soon as the keys it has just seen no longer add mass. What is near is attended exactly, before any ranking.

Source: S2O, arXiv 2602.22575. The envelope bound in `_rank_granules` is that of Quest, arXiv 2406.10774.
"""

from dataclasses import dataclass

import torch

# Ranking reads every PROBE_STRIDE-th query of a segment exactly. Closer probes rank no better on structured heads.
PROBE_STRIDE = 16
# Weight of a granule that one row may need badly against one that all rows want a little: at 0.03 a key that a single
# row looks for enters the first 5 % of the order, and the mass recalled per visited key falls by a few percent only.
NEED_WEIGHT = 0.03
# A row stays until it has seen so many of its own most promising granules. The bound behind a promise is loose: what
# a row really seeks was the first to third of them on structured heads, and with one alone some rows left too early.
PROMISES = 4


@dataclass(frozen=True)
class S2OStats:
    """What one call has attended, in (query row, key) pairs summed over batch and query heads, near keys included."""

    visited_pairs: int
    causal_pairs: int

    @property
    def density(self) -> float:
        """Visited share of the pairs of dense causal attention, 0 to 1."""
        return self.visited_pairs / max(self.causal_pairs, 1)

    def __add__(self, other: "S2OStats") -> "S2OStats":
        return S2OStats(self.visited_pairs + other.visited_pairs, self.causal_pairs + other.causal_pairs)


def count_causal_pairs(q_len: int, kv_len: int) -> int:
    """(query, key) pairs of one head when the queries are the last `q_len` of `kv_len` positions."""
    return q_len * (kv_len - q_len) + q_len * (q_len + 1) // 2


@torch.no_grad()
def s2o_prefill(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    tau: float,
    segment: int,
    granule: int,
    chunk: int,
    patience: int,
    sink: int,
    local: int,
) -> tuple[torch.Tensor, S2OStats]:
    """Causal attention that visits, per query, only as much of the past as still adds softmax mass.

    Args:
        query: `[B, H, q_len, D]`, the last `q_len` positions of the sequence.
        key: `[B, Hkv, kv_len, D]` with `kv_len >= q_len` and `H` a multiple of `Hkv`.
        value: `[B, Hkv, kv_len, Dv]`; `Dv` may differ from `D`.
        scale: factor of the logits, usually `D**-0.5`.
        tau: a chunk that brings a row less than this share of the mass it then holds is calm; 0 visits every key.
        segment: queries that share one order. The queries given are cut into segments from their first one on.
        granule: contiguous keys that are ranked and visited together.
        chunk: keys visited between two tests, a multiple of `granule`.
        patience: calm chunks running after which a row drops out, if it has seen its most promising granules.
        sink: keys at the start of the sequence that every query attends.
        local: keys right before the segment that every query of it attends.

    Returns:
        `[B, H, q_len, Dv]` in the dtype of `query` (float32 inside), and the pairs visited.
    """
    batch, heads, q_len, head_dim = query.shape
    kv_heads, kv_len, value_dim = key.shape[1], key.shape[2], value.shape[3]
    ratio = heads // kv_heads
    grouped = query.reshape(batch, kv_heads, ratio, q_len, head_dim)
    out = query.new_empty(batch, kv_heads, ratio, q_len, value_dim)
    visited = 0
    for b in range(batch):
        for h in range(kv_heads):
            # One KV head at a time: rows drop out head by head, so a batched walk would last as long as its most
            # diffuse head. float32 once, here: logits rounded to bf16 would cost more than what S2O leaves out.
            keys, values = key[b, h].float(), value[b, h].float()  # [kv_len, D], [kv_len, Dv]
            envelope = _granule_envelope(keys, granule)
            for begin in range(0, q_len, segment):
                rows = slice(begin, min(begin + segment, q_len))
                queries = grouped[b, h, :, rows].float() * scale  # [ratio, S, D]
                softmax = OnlineSoftmax(queries.flatten(0, 1), value_dim)
                start = kv_len - q_len + begin  # position of the segment's first query
                near = _near_keys(start, granule, sink, local)
                _attend_near(softmax, keys, values, near, start, rows.stop - begin)
                if near[0] < near[1]:
                    order, latest = _rank_granules(queries, keys, envelope, near, granule)
                    _attend_ranked(softmax, keys, values, order, latest, tau, granule, chunk, patience)
                out[b, h, :, rows] = softmax.output().view(ratio, -1, value_dim).to(out.dtype)
                visited += softmax.visited_pairs
    stats = S2OStats(visited, batch * heads * count_causal_pairs(q_len, kv_len))
    return out.view(batch, heads, q_len, value_dim), stats


class OnlineSoftmax:
    """Running softmax attention of R rows: what each row holds of the keys it has visited so far.

    Per row, float32: `peak` m, the largest logit; `mass` l = sum exp(logit - m); `acc` = sum exp(logit - m) * value.
    """

    def __init__(self, queries: torch.Tensor, value_dim: int):
        rows = queries.shape[0]
        self.queries = queries  # [R, D], scaled
        self.peak = queries.new_full((rows, 1), -torch.inf)
        self.mass = queries.new_zeros(rows, 1)
        self.acc = queries.new_zeros(rows, value_dim)
        self.visited_pairs = 0

    def visit(
        self, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, hidden: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Let `rows` `[n]` attend `keys` `[K, D]`; `hidden` `[S, K]` marks pairs left out, the same every S rows.

        Returns the marginal gain `[n]`: the share of the mass now held that these keys brought, 0 to 1. Every row must
        see at least one key at its first visit, else its mass is undefined.
        """
        logits = self.queries[rows] @ keys.T  # [n, K]
        self.visited_pairs += logits.numel()
        if hidden is not None:
            repeats = logits.view(-1, *hidden.shape)  # [n / S, S, K]
            repeats.masked_fill_(hidden, -torch.inf)
            self.visited_pairs -= repeats.shape[0] * int(hidden.sum())
        peak = torch.maximum(self.peak[rows], logits.amax(-1, keepdim=True))
        rescale = (self.peak[rows] - peak).exp()  # exp(m_old - m)
        weights = logits.sub_(peak).exp_()
        kept = self.mass[rows] * rescale
        mass = kept + weights.sum(-1, keepdim=True)
        self.acc[rows] = (self.acc[rows] * rescale).addmm_(weights, values)
        self.peak[rows], self.mass[rows] = peak, mass
        return (1 - kept / mass).squeeze(-1)

    def output(self) -> torch.Tensor:
        return self.acc / self.mass  # [R, Dv]


def _near_keys(start: int, granule: int, sink: int, local: int) -> tuple[int, int]:
    """(first, last): every query of the segment attends the keys before `first` and those from `last` on.

    Both are cut on whole granules, widening what is near, so that what is ranked needs no mask.
    """
    last = max(0, start - local) // granule * granule
    first = min(-(-sink // granule) * granule, last)
    return first, last


def _attend_near(
    softmax: OnlineSoftmax, keys: torch.Tensor, values: torch.Tensor, near: tuple[int, int], start: int, length: int
) -> None:
    """Pass 1: sinks, local keys and the causal window within the segment, exact; the first values of the softmax."""
    first, last = near
    position = torch.arange(keys.shape[0], device=keys.device)
    position = torch.cat([position[:first], position[last : start + length]])  # [K]
    future = position > position[-length:, None]  # [S, K], the last S keys are the queries' own
    rows = torch.arange(softmax.queries.shape[0], device=keys.device)
    softmax.visit(rows, keys[position], values[position], hidden=future)


def _granule_envelope(keys: torch.Tensor, granule: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest and smallest value per dimension in each whole granule, [kv_len // granule, D] both."""
    whole = keys.shape[0] // granule * granule
    granules = keys[:whole].view(-1, granule, keys.shape[1])
    return granules.amax(1), granules.amin(1)


def _rank_granules(
    queries: torch.Tensor,
    keys: torch.Tensor,
    envelope: tuple[torch.Tensor, torch.Tensor],
    near: tuple[int, int],
    granule: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One order of the granules between the near keys, for all queries `[ratio, S, D]`.

    Two things make a granule worth an early visit, and neither shows in the mean query that the paper ranks by:
    - many rows want it: the mean share of mass that a sample of the queries, taken singly, really finds there;
    - one row may want it badly: the largest share any single row could find there, by the bound
      q.k <= sum_d max(q_d * high_d, q_d * low_d). Sampled queries never see a needle that only their neighbour seeks.

    Returns the granules' indices, best first, and per row `[R]` the place in that order of the last granule that the
    row must see before it may stop.
    """
    first, last = near
    length = queries.shape[1]
    # Counted back from the segment's end: the last query of a prompt is always among the probes.
    probes = queries[:, (length - 1) % PROBE_STRIDE :: PROBE_STRIDE].flatten(0, 1)  # [P, D]
    found = (probes @ keys[first:last].T).softmax(-1)  # [P, keys]
    wanted = found.mean(0).view(-1, granule).sum(-1)  # [granules]

    high, low = (bound[first // granule : last // granule] for bound in envelope)  # [granules, D]
    rows = queries.flatten(0, 1)
    ceiling = (rows.clamp(min=0) @ high.T).addmm_(rows.clamp(max=0), low.T)  # [R, granules]
    needed = ceiling.softmax(-1).amax(0)  # [granules]
    order = torch.maximum(wanted, NEED_WEIGHT * needed).argsort(descending=True)
    promises = ceiling.topk(min(PROMISES, order.numel()), dim=-1).indices  # [R, PROMISES]
    latest = order.argsort()[promises].amax(-1)  # [R]; the argsort of an order tells where in it each granule comes
    return order + first // granule, latest


def _attend_ranked(
    softmax: OnlineSoftmax,
    keys: torch.Tensor,
    values: torch.Tensor,
    order: torch.Tensor,
    latest: torch.Tensor,
    tau: float,
    granule: int,
    chunk: int,
    patience: int,
) -> None:
    """Pass 2: the ranked granules, chunk by chunk, by the rows that still gain.

    Rows drop out singly, so queries need no order here. A tiled kernel stops whole tiles: it has to sort the queries
    first, so that those that stop late share a tile.
    """
    rows = torch.arange(softmax.queries.shape[0], device=keys.device)
    calm = torch.zeros_like(rows)  # chunks running in which the row gained less than tau
    # A key prefix cut on whole granules: order never names the ragged rest, which is near.
    whole = keys.shape[0] // granule * granule
    key_granules = keys[:whole].view(-1, granule, keys.shape[1])
    value_granules = values[:whole].view(-1, granule, values.shape[1])
    seen = 0
    for visited in order.split(chunk // granule):
        seen += visited.numel()
        gain = softmax.visit(rows, key_granules[visited].flatten(0, 1), value_granules[visited].flatten(0, 1))
        # gain >= 0 always, so tau == 0 lets no row go: dense and exact.
        calm = torch.where(gain < tau, calm + 1, 0)
        staying = (calm < patience) | (latest[rows] >= seen)
        rows, calm = rows[staying], calm[staying]
        if rows.numel() == 0:
            break
