"""Building a trie: sort the sequences, drop repetitions, number the nodes."""

from typing import NamedTuple

import numpy as np
import torch

from ..kernels.static.reference import PAD, Trie
from .wide import with_bits


class Sorted(NamedTuple):
    """
    Attributes:
        codes (`np.ndarray` of int16 or int32, `[N, L]`): distinct sequences, ascending, `PAD` behind the end.
        order (`np.ndarray`, `[rows]`): the rows that came in, in the order of their sequences.
        rank (`np.ndarray`, `[rows]`): sequence of each of these rows, ascending; repetitions share one.
        alphabet, alphabet_start (`np.ndarray`): see `Trie`.
    """

    codes: np.ndarray
    order: np.ndarray
    rank: np.ndarray
    alphabet: np.ndarray
    alphabet_start: np.ndarray


def sort_sequences(tokens: np.ndarray, lengths: np.ndarray) -> Sorted:
    """Codes of `tokens [rows, L]`, sorted, each sequence once."""
    codes, alphabet, alphabet_start = encode(tokens, lengths)
    order = np.lexsort(_sort_keys(codes, np.diff(alphabet_start)))
    codes = codes[order]
    is_new = np.ones(len(codes), dtype=bool)
    is_new[1:] = _common_prefix(codes)[1:-1] < codes.shape[1]
    if not is_new.all():
        codes = codes[is_new]
    return Sorted(codes, order, np.cumsum(is_new) - 1, alphabet, alphabet_start)


def number_nodes(codes: np.ndarray, alphabet: np.ndarray, alphabet_start: np.ndarray) -> Trie:
    """
    The trie above sorted distinct `codes [N, L]`.

    Level by level, a node stands where a new prefix begins, unless the prefix one shorter is already unique to a
    sequence. Nodes of a level come in sorted order, so the children of neighbours are neighbours, and counting the
    nodes of the next level before a node's first sequence gives its first child.
    """
    length = codes.shape[1]
    shared = _common_prefix(codes)
    longest = np.maximum(shared[:-1], shared[1:])  # prefix that each sequence shares with any other
    first_sequence, code, first_child, widths = [np.zeros(1, np.int32)], [np.zeros(1, codes.dtype)], [], []
    below = 1  # nodes of all levels so far, hence the number of the next level's first node
    for depth in range(1, length + 1):
        begins = (shared[:-1] < depth) & (longest >= depth - 1) & (codes[:, depth - 1] != PAD)
        before = np.concatenate([[0], np.cumsum(begins, dtype=np.int32)]).astype(np.int32)
        children = below + before[first_sequence[-1]]
        below += int(before[-1])
        first_child.append(children)
        widths.append(int(np.diff(children, append=np.int32(below)).max(initial=1)))
        first_sequence.append(np.flatnonzero(begins).astype(np.int32))
        code.append(codes[begins, depth - 1])
    last_level = np.full(len(first_sequence[-1]) + 1, below, dtype=np.int32)  # no children, and the closing bound
    no_bits = torch.zeros(0, dtype=torch.int32, device="cpu")
    trie = Trie(
        alphabet=torch.from_numpy(alphabet),
        alphabet_start=torch.from_numpy(alphabet_start),
        sequences=torch.from_numpy(codes),
        first_child=torch.from_numpy(np.concatenate([*first_child, last_level])),
        code=torch.from_numpy(np.concatenate(code)),
        first_sequence=torch.from_numpy(np.concatenate(first_sequence)),
        wide=no_bits,
        wide_start=no_bits,
        wide_bits=no_bits,
        node_alive=None,
        sequence_alive=None,
        widths=tuple(max(width, 1) for width in widths),
    )
    return with_bits(trie)


def encode(tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Codes, alphabet and its starts of `tokens [N, L]`. Every level gets codes of its own, its distinct tokens counted
    up: vocabularies are far wider than a level.
    """
    levels = []
    for level in range(tokens.shape[1]):
        is_there = lengths > level
        column = tokens[:, level] if is_there.all() else tokens[is_there, level]
        seen = np.zeros(int(column.max()) + 1, dtype=bool)
        seen[column] = True
        levels.append(np.flatnonzero(seen).astype(np.int32))
    widest = max(map(len, levels))
    codes = np.full(tokens.shape, PAD, dtype=np.int16 if widest < 2**15 else np.int32)
    for level, alphabet in enumerate(levels):
        lookup = np.zeros(int(alphabet[-1]) + 1, dtype=codes.dtype)
        lookup[alphabet] = np.arange(len(alphabet))
        is_there = lengths > level
        if is_there.all():
            codes[:, level] = lookup[tokens[:, level]]
        else:
            codes[is_there, level] = lookup[tokens[is_there, level]]
    start = np.cumsum([0, *map(len, levels)], dtype=np.int32)
    return codes, np.concatenate(levels), start


def _sort_keys(codes: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """As few 64-bit keys as hold the codes of all levels, the last levels' first, as `np.lexsort` wants them."""
    keys: list[np.ndarray] = []
    room = 0
    for level, size in enumerate(sizes):
        bits = int(size).bit_length()  # codes shifted up by one, so that the end sorts before every token
        if bits > room:
            keys.append(np.zeros(len(codes), dtype=np.uint64))
            room = 64
        keys[-1] <<= np.uint64(bits)
        keys[-1] |= (codes[:, level] + codes.dtype.type(1)).astype(np.uint64)
        room -= bits
    return keys[::-1]


def _common_prefix(codes: np.ndarray) -> np.ndarray:
    """Length of the prefix that rows of sorted `codes [N, L]` share with the row before, `[N + 1]`; -1 at the ends."""
    shared = np.full(len(codes) + 1, -1, dtype=np.int16)
    shared[1:-1] = 0
    is_same = np.ones(len(codes) - 1, dtype=bool)
    for level in range(codes.shape[1]):
        is_same &= codes[1:, level] == codes[:-1, level]
        shared[1:-1] += is_same
    return shared
