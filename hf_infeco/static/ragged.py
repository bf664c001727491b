"""Runs of places in flat arrays: children of nodes, letters of ids."""

import numpy as np


def ranges(begin: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`begin[i]`, `begin[i] + 1`, ..., `counts[i]` places from each, one run behind the other; int64."""
    before = np.cumsum(counts, dtype=np.int64) - counts
    return np.arange(int(counts.sum())) + np.repeat(begin - before, counts)
