"""One call of the processor: by the size of the catalogue, by that of the vocabulary, and in a wide vocabulary."""

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

import hf_infeco

from ..measuring import timed
from .catalogues import LENGTH, PROMPT, TOKENS, WIDE_VOCABULARY, catalogue, row_sets

CPU = torch.device("cpu")


def our_processor(sequences: np.ndarray, vocabulary: int = TOKENS) -> hf_infeco.StaticLogitsProcessor:
    index = hf_infeco.StaticIndex.build(sequences, vocab_size=vocabulary)
    return hf_infeco.StaticLogitsProcessor(index, prompt_length=PROMPT)


def milliseconds(
    calls: dict[str, Callable], rows: list[torch.Tensor], depth: int, vocabulary: int
) -> dict[str, float]:
    """Median of one call for all rows, the calls in turn, on the same memory; scores are drawn outside the clock."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    scores = torch.empty(len(rows[0]), vocabulary)
    for ids in rows:
        ids = ids[:, : PROMPT + depth].contiguous()
        for name, call in calls.items():
            scores.normal_()
            taken[name].append(timed(CPU, lambda call=call, ids=ids: call(ids, scores))[0])
    return {name: round(1000 * median(seconds), 4) for name, seconds in taken.items()}


def by_depth(call: Callable, rows: list[torch.Tensor], vocabulary: int = TOKENS) -> list[float]:
    """Milliseconds of one call at each depth."""
    milliseconds({"call": call}, rows[:1], 0, vocabulary)  # compiles
    return [milliseconds({"call": call}, rows, depth, vocabulary)["call"] for depth in range(LENGTH)]


def measure_step(counts: tuple[int, ...], items: int, beams: int, repeats: int) -> dict[str, Any]:
    """Our processor at each depth, in catalogues of `counts` items, and with `items` items by the vocabulary."""

    def taken(count: int, vocabulary: int) -> list[float]:
        sequences = catalogue(count, tokens=vocabulary)
        return by_depth(our_processor(sequences, vocabulary), row_sets(sequences, beams, repeats), vocabulary)

    by_items = {str(count): taken(count, TOKENS) for count in counts}
    per_depth = list(zip(*by_items.values()))
    return {
        "milliseconds_by_depth": by_items,
        "largest_milliseconds": max(map(max, by_items.values())),
        "slowest_to_fastest_catalogue_by_depth": [round(max(depth) / min(depth), 2) for depth in per_depth],
        "vocabulary_items": items,
        "milliseconds_by_vocabulary_and_depth": {str(size): taken(items, size) for size in (256, 2048, 32768)},
    }


def measure_wide(items: int, beams: int, repeats: int) -> dict[str, Any]:
    """Our processor in a vocabulary of 150K, beside one fill of the same scores."""
    sequences = catalogue(items, WIDE_VOCABULARY - TOKENS)
    rows = row_sets(sequences, beams, repeats)
    calls = {
        "processor": our_processor(sequences, WIDE_VOCABULARY),
        "fill": lambda ids, scores: scores.fill_(float("-inf")),
    }
    milliseconds(calls, rows[:1], 0, WIDE_VOCABULARY)  # compiles
    entry = {str(depth): milliseconds(calls, rows, depth, WIDE_VOCABULARY) for depth in (0, 1, 4, 7)}
    ratios = {depth: round(taken["processor"] / taken["fill"], 2) for depth, taken in entry.items()}
    return {"items": items, "milliseconds_by_depth": entry, "times_one_fill_by_depth": ratios}
