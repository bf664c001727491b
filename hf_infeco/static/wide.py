"""The wide nodes of a trie: bits instead of children where a node has much of its level's tokens for children."""

import numpy as np
import torch

from ..kernels.static.reference import Trie
from .ragged import ranges

LEAST = 128  # children from which on a node has bits: with fewer, one at a time is as fast
SPARSEST = 32  # and tokens between its level's first and last for each child, at most: four bytes a child


def with_bits(trie: Trie) -> Trie:
    """The trie with `wide`, `wide_start` and `wide_bits`, which tell eligible children only."""
    first_child = trie.first_child.cpu().numpy()
    counts = np.diff(first_child)
    wide = np.flatnonzero(counts >= LEAST)
    level = np.searchsorted([behind for _, behind in trie.levels()], wide, side="right")
    start = trie.alphabet_start.cpu().numpy()
    alphabet = trie.alphabet.cpu().numpy()
    least = alphabet[start[:-1]]
    spans = alphabet[start[1:] - 1] - least + 1
    kept = counts[wide].astype(np.int64) * SPARSEST >= spans[level]
    wide, level = wide[kept], level[kept]
    wide_start = np.concatenate([[0], np.cumsum(-(-spans[level] // 32))]).astype(np.int32)

    children = ranges(first_child[wide], counts[wide])
    parent = np.repeat(np.arange(len(wide)), counts[wide])
    if trie.node_alive is not None:
        is_alive = trie.node_alive.cpu().numpy()[children]
        children, parent = children[is_alive], parent[is_alive]
    token = alphabet[start[level[parent]] + trie.code.cpu().numpy()[children]] - least[level[parent]]
    words = _words(wide_start[parent].astype(np.int64), token, int(wide_start[-1]))
    arrays = (wide.astype(np.int32), wide_start, words)
    nodes, starts, bits = (torch.from_numpy(array).to(trie.code.device) for array in arrays)
    return trie._replace(wide=nodes, wide_start=starts, wide_bits=bits)


def _words(start: np.ndarray, bit: np.ndarray, total: int) -> np.ndarray:
    """`total` words of int32 in which, counted from word `start`, some bits are set. Both ascend together."""
    words = np.zeros(total, dtype=np.uint32)
    if len(bit):
        at = start + bit // 32
        begins = np.flatnonzero(np.diff(at, prepend=-1))
        values = np.uint32(1) << (bit % 32).astype(np.uint32)
        words[at[begins]] = np.bitwise_or.reduceat(values, begins)
    return words.view(np.int32)
