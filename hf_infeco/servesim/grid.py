"""Tables of measured times as functions: linear between rows, and a word where there is no row."""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np


class Curve:
    """
    Time by a whole number of tokens or sequences, tabulated for every number up to the last measured one.

    Args:
        at, seconds: measured points.
    """

    def __init__(self, at: Sequence[int], seconds: Sequence[float]):
        order = np.argsort(at)
        points, times = np.asarray(at, float)[order], np.asarray(seconds, float)[order]
        self.largest = int(points[-1])
        self.values: list[float] = np.interp(np.arange(self.largest + 1), points, times).tolist()
        # Beyond the last row only the trend of the upper half is known.
        middle = self.values[self.largest // 2]
        self.slope = max((self.values[-1] - middle) / max(self.largest - self.largest // 2, 1), 0.0)

    def __call__(self, number: int) -> float:
        if number <= self.largest:
            return self.values[number]
        return self.values[-1] + self.slope * (number - self.largest)


class AttentionGrid:
    """
    Seconds of one layer's attention by the tokens of a prompt's chunk, its KV length before, the number of sequences
    that decode, and their mean KV length: linear along each axis.

    Rows need not fill a grid. Along an axis a gap between two rows is interpolated. What has no row on both sides is a
    hole: it is filled with the trend along the number of sequences, and `is_hole` tells so.

    Args:
        rows: (prefill_chunk, kv_prefill, n_decode, kv_decode, seconds). Without a chunk, kv_prefill means nothing, and
            without decoding, kv_decode.
    """

    def __init__(self, rows: Sequence[tuple[int, int, int, int, float]]):
        axes = [sorted({row[axis] for row in rows} | {0}) for axis in range(4)]
        places = [{value: place for place, value in enumerate(axis)} for axis in axes]
        values = np.full([len(axis) for axis in axes], np.nan)
        for *point, seconds in rows:
            values[tuple(place[value] for place, value in zip(places, point))] = seconds
        _spread_what_means_nothing(values, places[1][0], places[3][0])
        for axis in (3, 1, 0, 2):
            values = np.apply_along_axis(_fill_between, axis, values, np.asarray(axes[axis], float))
        holes = np.isnan(values)
        for axis in (2, 3, 1, 0):  # the trend along the number of sequences first
            values = np.apply_along_axis(_fill_beyond, axis, values, np.asarray(axes[axis], float))
        values = np.ascontiguousarray(np.maximum(values, 0.0))
        self.axes = axes
        self.steps = [int(step) // values.itemsize for step in values.strides]
        self.flat: list[float] = values.ravel().tolist()
        self.holes: list[bool] | None = holes.ravel().tolist() if holes.any() else None
        # Up to so many sequences there is no hole, so that most lookups need not search for one.
        sound = [n for place, n in enumerate(axes[2]) if not holes[:, :, : place + 1].any()]
        self.ends = axes[0][-1], axes[1][-1], max(sound, default=-1), axes[3][-1]
        self.decode_rows = values[0, 0].tolist()

    def __call__(self, chunk: int, kv_prefill: float, n: int, kv: float) -> float:
        if not chunk:
            return self.decode(n, kv)
        at = ((chunk, 0), (kv_prefill, 1), (n, 2), (kv, 3))
        corners = [(0, 1.0)]
        for value, axis in at:
            low, part = _between(self.axes[axis], value)
            step = self.steps[axis]
            if part:
                low *= step
                corners = [
                    pair
                    for place, weight in corners
                    for pair in ((place + low, weight * (1.0 - part)), (place + low + step, weight * part))
                ]
            else:
                corners = [(place + low * step, weight) for place, weight in corners]
        flat = self.flat
        return sum([flat[place] * weight for place, weight in corners])

    def decode(self, n: int, kv: float) -> float:
        """Without a chunk."""
        i, part = _between(self.axes[2], n)
        j, along = _between(self.axes[3], kv)
        row = self.decode_rows[i]
        low = row[j] + along * (row[j + 1] - row[j]) if along else row[j]
        if not part:
            return low
        row = self.decode_rows[i + 1]
        high = row[j] + along * (row[j + 1] - row[j]) if along else row[j]
        return low + part * (high - low)

    def is_outside(self, chunk: int, kv_prefill: float, n: int, kv: float) -> bool:
        """Whether a lookup leaves the measured rows: beyond an axis' end, or next to a hole."""
        ends = self.ends
        if chunk <= ends[0] and kv_prefill <= ends[1] and n <= ends[2] and kv <= ends[3]:
            return False
        point = (chunk, kv_prefill if chunk else 0, n, kv if n else 0)
        if any(value > axis[-1] for value, axis in zip(point, self.axes)):
            return True
        if self.holes is None:
            return False
        place = 0
        for value, axis, step in zip(point, self.axes, self.steps):
            low, part = _between(axis, value)
            place += (low + bool(part)) * step
        return self.holes[place]


def _between(axis: Sequence[float], value: float) -> tuple[int, float]:
    """The place of the row below a value, and how far the value is on the way to the next, past 1 beyond the end."""
    low = bisect_right(axis, value) - 1
    last = len(axis) - 1
    if low >= last:
        if value == axis[last] or not last:
            return last, 0.0
        low = last - 1
    below = axis[low]
    return low, (value - below) / (axis[low + 1] - below)


def _spread_what_means_nothing(values: np.ndarray, no_prefix: int, no_kv: int) -> None:
    """Rows without a chunk hold for every kv_prefill, those without decoding for every kv_decode."""
    values[0, :, :, :] = values[0, no_prefix, :, :]
    values[:, :, 0, :] = values[:, :, 0, no_kv, None]
    # Nothing at all is never looked up; it is the end of what a shorter chunk than the shortest is interpolated to.
    values[0, :, 0, :] = np.nanmin(values[1:, no_prefix, 0, no_kv], initial=np.inf)
    if np.isinf(values[0, 0, 0, 0]):
        values[0, :, 0, :] = 0.0


def _fill_between(line: np.ndarray, at: np.ndarray) -> np.ndarray:
    known = ~np.isnan(line)
    if known.all() or known.sum() < 2:
        return line
    return np.where(known, line, np.interp(at, at[known], line[known], left=np.nan, right=np.nan))


def _fill_beyond(line: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Straight on through the last two rows at either end; a single row holds everywhere."""
    known = np.flatnonzero(~np.isnan(line))
    if not len(known) or len(known) == len(line):
        return line
    filled = np.interp(at, at[known], line[known])
    if len(known) > 1:
        for end, inner in ((known[0], known[1]), (known[-1], known[-2])):
            slope = (line[end] - line[inner]) / (at[end] - at[inner])
            beyond = at < at[end] if end < inner else at > at[end]
            filled = np.where(beyond, line[end] + slope * (at - at[end]), filled)
    return filled


class MoeGrid:
    """Seconds of one mixture of experts by the tokens of a rank and the distinct experts that they reach there."""

    def __init__(self, rows: Sequence[tuple[int, int, float]]):
        experts = sorted({row[1] for row in rows})
        self.experts = experts
        self.curves = [
            Curve([t for t, e, _ in rows if e == count], [s for _, e, s in rows if e == count]) for count in experts
        ]

    def __call__(self, tokens: float, experts: float) -> float:
        low, part = _between(self.experts, max(experts, self.experts[0]))
        value = self.curves[low](round(tokens))
        return value + part * (self.curves[low + 1](round(tokens)) - value) if part else value
