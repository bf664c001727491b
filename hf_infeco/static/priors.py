"""What is known of the items beforehand, such as how popular they are, as numbers that a search adds on its way."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..kernels.static import reference
from ..kernels.static.reference import PAD, Trie

if TYPE_CHECKING:
    from .index import StaticIndex


class LogPriors(NamedTuple):
    """
    Log-priors of an index's items, handed up its trie: a node has the best of what can be reached from it. A step adds
    what a child has less than its parent, so that a whole sequence's score has its own prior added, and beams on the
    way to favoured items are favoured.

    Attributes:
        index (`StaticIndex`): the index that they belong to.
        sequence (`torch.Tensor` of float32, `[N]`): the best of each sequence's eligible items; -inf without one.
        node (`torch.Tensor` of float32, `[M]`): the best of each node's sequences.
    """

    index: "StaticIndex"
    sequence: torch.Tensor
    node: torch.Tensor

    def gains(self, node: torch.Tensor, depth: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        What is added for each step from states `(node, depth)`, `[R]`, to nodes `after [R, width]`, float32, and for
        ending there, `[R]`; 0 where a state is none.
        """
        at = node.clamp(min=0)
        here = self.node[at]
        whole = reference.is_whole(self.index.trie, node, depth)
        ends = self.sequence[self.index.trie.first_sequence[at].long()] - here
        on = self.node[after] - here[:, None]
        return on.masked_fill((node < 0)[:, None] | ~on.isfinite(), 0.0), ends.masked_fill(~whole, 0.0)


def require_priors_of(index: "StaticIndex", log_priors: LogPriors | None) -> None:
    if log_priors is not None and log_priors.index is not index:
        raise ValueError(
            f"The log-priors belong to another index, {log_priors.index}: make them with log_priors() of the one in "
            "use, behind subset(), without(), extend() and to()."
        )


def hand_up(trie: Trie, items: np.ndarray, eligible: torch.Tensor | None, begin: torch.Tensor | None) -> tuple:
    """`sequence` and `node` of `LogPriors` from `items`, the value of each in the order of the sequences."""
    values = items.astype(np.float32)
    if eligible is not None:
        values = np.where(eligible.numpy(), values, -np.inf).astype(np.float32)
    sequence = values if begin is None else np.maximum.reduceat(values, begin.numpy()[:-1])
    first_child, first, codes = (
        part.cpu().numpy() for part in (trie.first_child, trie.first_sequence, trie.sequences)
    )
    node = np.full(len(first), -np.inf, dtype=np.float32)
    for depth, (low, high) in reversed(list(enumerate(trie.levels()))):
        bounds, mine = first_child[low : high + 1], first[low:high]
        has_children = bounds[1:] > bounds[:-1]
        own = ~has_children  # a node's first sequence is its only one, or may end at it
        if depth < trie.length:
            own |= codes[mine, depth] == PAD
        node[low:high] = np.where(own, sequence[mine], -np.inf)
        if has_children.any():
            best = np.maximum.reduceat(node[: bounds[-1]], bounds[:-1][has_children])
            node[low:high][has_children] = np.maximum(node[low:high][has_children], best)
    device = trie.code.device
    return torch.from_numpy(sequence).to(device), torch.from_numpy(node).to(device)
