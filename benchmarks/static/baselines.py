"""What else constrains a step: transformers' processor over a dict or a marisa-trie, and binary search."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PrefixConstrainedLogitsProcessor

from .catalogues import PROMPT, TOKENS, catalogue, row_sets
from .step import by_depth, our_processor


def compare_baselines(items: int, beams: int, repeats: int) -> dict[str, Any]:
    """Our processor and each baseline at each depth, one after the other, none in another's way."""
    sequences = catalogue(items)
    rows = row_sets(sequences, beams, repeats)
    makers = {
        "hf_infeco": lambda: our_processor(sequences),
        "sorted array": lambda: binary_search(sequences),
        "dict": lambda: dict_trie(sequences, beams),
        "marisa-trie": lambda: marisa_trie(sequences, beams),
    }
    taken = {}
    for name, make in makers.items():
        if (constraint := make()) is not None:
            taken[name] = by_depth(constraint, rows)
        del constraint
    ours = taken["hf_infeco"]
    ratios = {name: [round(their / our, 1) for their, our in zip(times, ours)] for name, times in taken.items()}
    del ratios["hf_infeco"]
    return {"items": items, "milliseconds_by_depth": taken, "times_ours_by_depth": ratios}


def binary_search(sequences: np.ndarray) -> Callable:
    """Exact prefix verification without an index: narrow a range of the sorted array, then try every token in it."""
    ordered = np.asfortranarray(sequences[np.lexsort(sequences.T[::-1])])
    every = np.arange(TOKENS + 1)

    def constrain(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        mask = np.full(scores.shape, -np.inf, dtype=np.float32)
        for row, prefix in enumerate(ids[:, PROMPT:].tolist()):
            low, high = 0, len(ordered)
            for level, token in enumerate(prefix):
                low, high = low + np.searchsorted(ordered[low:high, level], [token, token + 1])
            found = np.searchsorted(ordered[low:high, len(prefix)], every)
            mask[row, found[1:] > found[:-1]] = 0
        return scores + torch.from_numpy(mask)

    return constrain


def dict_trie(sequences: np.ndarray, beams: int) -> Callable:
    """Transformers' processor over nested dicts, the usual `prefix_allowed_tokens_fn`."""
    root: dict = {}
    for sequence in sequences.tolist():
        node = root
        for token in sequence:
            node = node.setdefault(token, {})

    def allowed(batch: int, ids: torch.Tensor) -> list[int]:
        node = root
        for token in ids[PROMPT:].tolist():
            node = node[token]
        return list(node)

    return PrefixConstrainedLogitsProcessor(allowed, num_beams=beams)


def marisa_trie(sequences: np.ndarray, beams: int) -> Callable | None:
    """The same over marisa-trie, one character a token; the first two levels are kept ready as sets."""
    try:
        from marisa_trie import Trie
    except ModuleNotFoundError:
        return None
    first_character = 0x4E00  # a range without surrogates
    trie = Trie(map("".join, np.vectorize(chr)(sequences + first_character).tolist()))
    first = np.unique(sequences[:, 0]).tolist()
    second = {token: np.unique(sequences[sequences[:, 0] == token, 1]).tolist() for token in first}

    def allowed(batch: int, ids: torch.Tensor) -> list[int]:
        prefix = ids[PROMPT:].tolist()
        if len(prefix) < 2:
            return second[prefix[0]] if prefix else first
        text = "".join(chr(token + first_character) for token in prefix)
        return list({ord(key[len(text)]) - first_character for key in trie.iterkeys(text)})

    return PrefixConstrainedLogitsProcessor(allowed, num_beams=beams)
