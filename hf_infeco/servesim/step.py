"""
The closed formula: seconds of one step of an instance, from what is in its batch.

    step   = c · (1 + 4 · partial · x · (1 - x)) · tables + gap
    tables = dense(T) + L · attention + head(sequences) + L · experts + links
    T      = tokens of the batch, padded to a CUDA graph's size
    x      = share of the seats that decode

Calibration fits `c` (one of steps with a chunk of a prompt, one of those without), `partial`, `gap`, and a factor of
links.

Ranks that step together (data parallel attention, pipeline stages' batches) take as long as the slowest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .links import all_gather, all_reduce, reduce_scatter
from .settings import Instance, Link
from .shape import ModelShape
from .tables import Tables

if TYPE_CHECKING:
    from .requests import Job


@dataclass(slots=True)
class Batch:
    """
    What one rank computes in a step.

    Args:
        number: counts the batches of the rank.
        chunks: of prompts, as (tokens, KV length before).
        n: sequences that decode, one token each.
        kv_sum, kv_max, kv_min: of their KV lengths before this step.
        ends: jobs that end with this batch.
        begins: jobs whose prompt ends with it, so that it makes their next token.
    """

    number: int
    chunks: list[tuple[int, int]]
    n: int
    kv_sum: int
    kv_max: int
    kv_min: int
    ends: list["Job"] = field(default_factory=list)
    begins: list["Job"] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return self.n + sum(tokens for tokens, _ in self.chunks)


class StepTime:
    """The formula for one instance. `outside` counts the steps whose lookups left what the tables hold."""

    def __init__(self, tables: Tables, shape: ModelShape, instance: Instance):
        self.tables, self.shape, self.instance = tables, shape, instance
        self.fix = tables.correction
        self.padded = _padding(instance.scheduler.graph_sizes)
        self.hop = 2 * shape.hidden  # bytes of a token on its way between devices, in 16 bits
        self.ep = instance.expert_devices(shape.experts)
        self.steps = self.outside = 0
        self.comm: dict[int, float] = {}

    def __call__(self, batches: Sequence[Batch | None]) -> float:
        """Seconds until the slowest rank is through; a rank without a batch steps along where experts are shared."""
        tables, fix, layers = self.tables, self.fix, self.shape.layers
        tokens, slowest, has_chunk, decodes, is_outside = 0, 0.0, False, 0, False
        for batch in batches:
            if batch is not None:
                has_chunk = has_chunk or bool(batch.chunks)
                tokens = max(tokens, batch.tokens)
                decodes = max(decodes, batch.n)
                attention, left = self.attention(batch)
                is_outside = is_outside or left
                slowest = max(slowest, layers * attention + tables.head(batch.n + len(batch.chunks)))
        padded = self.padded[tokens] if tokens < len(self.padded) else tokens
        self.steps += 1
        self.outside += is_outside or padded > tables.dense.largest
        seconds = tables.dense(padded) + slowest + self.experts_and_links(padded)
        seconds *= fix.prefill if has_chunk else fix.decode
        if fix.partial:
            taken = min(decodes / self.instance.scheduler.max_num_seqs, 1.0)
            seconds *= 1.0 + 4.0 * fix.partial * taken * (1.0 - taken)
        return seconds + 1e-6 * fix.gap_us

    def attention(self, batch: Batch) -> tuple[float, bool]:
        """One layer's, of one rank, and whether the lookup left what the table holds."""
        grid, n = self.tables.attention, batch.n
        chunk = prefix = 0
        for tokens, before in batch.chunks:
            chunk += tokens
            prefix += before
        mean = batch.kv_sum / n if n else 0
        seconds, skew = grid(chunk, prefix, n, mean), self.tables.skew
        if skew is not None and batch.kv_max > batch.kv_min:
            alpha = skew.alpha(chunk, prefix, n, mean, batch.kv_max, batch.kv_min)
            if alpha:
                seconds += alpha * (grid(chunk, prefix, n, batch.kv_max) - seconds)
        return seconds, grid.is_outside(chunk, prefix, n, mean)

    def experts_and_links(self, tokens: int) -> float:
        """What depends on the number of tokens alone, of all layers."""
        if tokens not in self.comm:
            self.comm[tokens] = self.experts(tokens) + self.fix.link * self.links(tokens)
        return self.comm[tokens]

    def experts(self, tokens: int) -> float:
        if self.tables.moe is None:
            return 0.0
        shape, everywhere = self.shape, tokens * self.instance.dp
        # Routers are trained to spread tokens evenly: a share (1 - k/E)^tokens of the experts is picked by none.
        picked = 1.0 - (1.0 - shape.experts_per_token / shape.experts) ** everywhere
        return shape.layers * self.tables.moe(everywhere / self.ep, picked * shape.experts / self.ep)

    def links(self, tokens: int) -> float:
        """All-reduces of tensor parallelism, dispatch and combine of experts, hops between pipeline stages."""
        instance, layers = self.instance, self.shape.layers
        link = instance.link or Link(gb_per_s=1.0)
        seconds = 0.0
        if instance.tp > 1:
            reduces = 1 if self.shape.experts and instance.dp > 1 else 2  # of attention, and of a dense MLP
            seconds += layers * reduces * all_reduce(link, tokens * self.hop, instance.tp)
        if self.shape.experts and instance.dp > 1:
            routed = tokens * instance.dp
            scores = 2 * self.shape.experts
            seconds += layers * all_gather(link, routed * (self.hop + scores), self.ep)
            seconds += layers * reduce_scatter(link, routed * self.hop, self.ep)
        return seconds + (instance.pp - 1) * (link.seconds(tokens * self.hop) if instance.pp > 1 else 0.0)


def _padding(sizes: Sequence[int]) -> list[int]:
    """The padded number of tokens for each number up to the largest size."""
    padded, sizes = [0], sorted(sizes)
    for size in sizes:
        padded += [size] * (size + 1 - len(padded))
    return padded
