"""More sequences for sorted ones: put in between, without sorting them all again."""

from typing import Any, NamedTuple

import numpy as np

from ..kernels.static.reference import PAD, Trie
from .build import Sorted, encode


class Merged(NamedTuple):
    """
    Attributes:
        codes, alphabet, alphabet_start (`np.ndarray`): of all sequences, as `number_nodes` takes them.
        old_rank, new_rank (`np.ndarray`): where the sequences of either side are now.
    """

    codes: np.ndarray
    alphabet: np.ndarray
    alphabet_start: np.ndarray
    old_rank: np.ndarray
    new_rank: np.ndarray


def eligible_codes(trie: Trie) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, alphabet and its starts of the eligible sequences, as a build of these alone would have them."""
    codes, alphabet, start = (
        tensor.cpu().contiguous().numpy() for tensor in (trie.sequences, trie.alphabet, trie.alphabet_start)
    )
    if trie.sequence_alive is None:
        return codes, alphabet, start
    codes = codes[trie.sequence_alive.cpu().numpy()]
    lengths = (codes != PAD).sum(1)
    codes, kept, kept_start = encode(codes[:, : lengths.max()], lengths)
    old_start = np.repeat(start[: len(kept_start) - 1], np.diff(kept_start))
    return codes, alphabet[old_start + kept], kept_start


def merge(old: tuple[np.ndarray, np.ndarray, np.ndarray], new: Sorted) -> Merged:
    """
    Args:
        old: codes, alphabet and its starts of distinct sequences, sorted.
    """
    codes, alphabet, start = old
    levels = [
        (_level(alphabet, start, level), _level(new.alphabet, new.alphabet_start, level))
        for level in range(max(codes.shape[1], new.codes.shape[1]))
    ]
    union = [np.union1d(*pair) for pair in levels]
    dtype = np.int16 if max(map(len, union)) < 2**15 else np.int32
    before = _recode(codes, [mine for mine, _ in levels], union, dtype)
    more = _recode(new.codes, [mine for _, mine in levels], union, dtype)
    place, is_known = _find_rows(before, more)
    inserted = place[~is_known]
    old_rank = np.arange(len(before)) + np.cumsum(np.bincount(inserted, minlength=len(before) + 1))[:-1]
    new_rank = np.empty(len(more), dtype=np.int64)
    new_rank[~is_known] = inserted + np.arange(len(inserted))
    new_rank[is_known] = old_rank[place[is_known]]
    codes = np.insert(before, inserted, more[~is_known], axis=0)
    start = np.cumsum([0, *map(len, union)], dtype=np.int32)
    return Merged(codes, np.concatenate(union), start, old_rank, new_rank)


def _level(alphabet: np.ndarray, start: np.ndarray, level: int) -> np.ndarray:
    """The tokens of a level, none behind the last one."""
    return alphabet[start[level] : start[level + 1]] if level + 1 < len(start) else alphabet[:0]


def _recode(codes: np.ndarray, mine: list[np.ndarray], union: list[np.ndarray], dtype: Any) -> np.ndarray:
    """Codes that counted `mine` tokens of each level, counting those of the `union`."""
    recoded = np.full((len(codes), len(union)), PAD, dtype=dtype)
    recoded[:, : codes.shape[1]] = codes
    for level, (known, every) in enumerate(zip(mine, union, strict=True)):
        if 0 < len(known) < len(every):
            lookup = np.append(np.searchsorted(every, known), PAD).astype(dtype)  # PAD is -1, the last
            recoded[:, level] = lookup[recoded[:, level]]
    return recoded


def _find_rows(rows: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each `wanted` row belongs among sorted `rows`, and whether it is there already."""
    low, high = np.zeros(len(wanted), dtype=np.int64), np.full(len(wanted), len(rows))
    every = np.arange(len(wanted))
    for _ in range(len(rows).bit_length()):
        middle = (low + high) // 2
        there = rows[np.minimum(middle, len(rows) - 1)]
        differs = (there != wanted).argmax(1)
        is_below = (low < high) & (there[every, differs] < wanted[every, differs])
        low, high = np.where(is_below, middle + 1, low), np.where(is_below, high, np.maximum(middle, low))
    is_there = (low < len(rows)) & (rows[np.minimum(low, len(rows) - 1)] == wanted).all(1)
    return low, is_there
