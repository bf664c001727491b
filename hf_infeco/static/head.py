"""The head of a trie: bits instead of children where a node has much of its level for children."""

import numpy as np
import torch

from ..kernels.static.reference import Trie

MANY = 8  # level 1 has bits if its nodes have more than an eighth of their level's codes, so a byte a child at most


def with_head(trie: Trie) -> Trie:
    """The trie with `head` of its root, and of the nodes below the root if they are wide; eligible children only."""
    sizes = trie.alphabet_start.diff().tolist()
    (_, first), (_, behind) = trie.levels()[:2]
    bounds = trie.first_child[: behind + 1].cpu().numpy()
    nodes = first
    if len(sizes) > 1 and MANY * (bounds[behind] - bounds[first]) > (behind - first) * sizes[1]:
        nodes = behind
    children = slice(bounds[0], bounds[nodes])
    alive = True if trie.node_alive is None else trie.node_alive[children].cpu().numpy()
    words = -(-max(sizes[: 1 + (nodes > first)]) // 32)
    bits = np.zeros((nodes, 32 * words), dtype=bool)
    parent = np.repeat(np.arange(nodes), np.diff(bounds[: nodes + 1]))
    bits[parent, trie.code[children].cpu().numpy()] = alive
    head = torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").view(np.int32))
    return trie._replace(head=head.to(trie.code.device))
