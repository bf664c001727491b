"""Which nodes still lead somewhere when only some items are eligible."""

import torch

from ..kernels.static.reference import PAD, Trie
from .wide import with_bits


def propagate(trie: Trie, eligible: torch.Tensor, begin: torch.Tensor | None) -> Trie:
    """
    The trie with the bits of `eligible [items]` handed up to the root, level by level.

    Args:
        begin (`torch.Tensor` of int32, `[N + 1]`, *optional*): first item of each sequence; None if item is sequence.
    """
    device = trie.code.device
    counts = torch.nn.functional.pad(eligible.cumsum(0), (1, 0))
    sequence_alive = eligible if begin is None else counts[begin[1:].long()] > counts[begin[:-1].long()]
    sequence_alive = sequence_alive.to(device)

    # A node's first sequence is its only one if it has no children, and may end at it if it has.
    is_leaf = trie.first_child[1:] == trie.first_child[:-1]
    alive = is_leaf & sequence_alive[trie.first_sequence.long()]
    for depth, (low, high) in reversed(list(enumerate(trie.levels()))):
        ends = trie.sequences[trie.first_sequence[low:high].long(), min(depth, trie.length - 1)] == PAD
        alive[low:high] |= ends & sequence_alive[trie.first_sequence[low:high].long()]
        children = trie.first_child[low : high + 1].long()
        total = int(children[-1] - children[0])
        if total:
            counts = torch.nn.functional.pad(alive[children[0] : children[0] + total].cumsum(0), (1, 0))
            inside = counts[children - children[0]]
            alive[low:high] |= inside[1:] > inside[:-1]
    return with_bits(trie._replace(node_alive=alive, sequence_alive=sequence_alive))
