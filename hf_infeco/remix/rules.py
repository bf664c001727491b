"""Which undecided positions a step commits: one function per strategy."""

from collections.abc import Callable

from torch import Tensor

from ..kernels.remix.reference import FEWEST, MOST, SHARE
from .config import RemixConfig

# A rule gets the confidences `[B, G]`, -inf for what may not be committed, each one's rank in its row, and how many of
# a row may be committed, `[B, 1]`.
Rule = Callable[[Tensor, Tensor, Tensor, RemixConfig], Tensor]


def surest(confidence: Tensor, rank: Tensor, count: Tensor, config: RemixConfig) -> Tensor:
    return rank < 1


def surest_k(confidence: Tensor, rank: Tensor, count: Tensor, config: RemixConfig) -> Tensor:
    return rank < config.top_k


def surer_than_tau(confidence: Tensor, rank: Tensor, count: Tensor, config: RemixConfig) -> Tensor:
    # In double, or 0.7 of ten would be six.
    most = (SHARE * count.double()).floor().clamp(FEWEST, MOST)
    return (rank < 1) | ((confidence > config.tau_conf) & (rank < most))


RULES: dict[str, Rule] = {
    "one": surest,
    "top_k": surest_k,
    "confidence": surer_than_tau,
    "remix": surer_than_tau,
}


def accept(confidence: Tensor, window: Tensor, config: RemixConfig) -> Tensor:
    """
    The positions to commit, bool `[B, G]`: at least one of every row that has any in its `window`.

    Args:
        confidence (float32, `[B, G]`): of the token chosen at each position.
        window (bool, `[B, G]`): undecided positions of each row's current block.
    """
    confidence = confidence.masked_fill(~window, float("-inf"))
    rank = confidence.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return RULES[config.strategy](confidence, rank, window.sum(1, keepdim=True), config) & window
