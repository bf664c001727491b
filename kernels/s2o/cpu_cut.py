"""
`granules.cut_into_granules` compiled by numba: a block of keys and all that is computed of it stay in the cache.

Equal up to rounding, which may swap two keys that lie on either side of a median.
"""

import numpy as np
import torch

from ..jit import SUMS, jit
from .granules import APART, FAR, SQUARINGS, Granules, principal


def cut_into_granules(
    keys: torch.Tensor, values: torch.Tensor, frame: torch.Tensor, block: int, size: int
) -> Granules:
    """See `granules.cut_into_granules`."""
    keys, values = keys.float().contiguous(), values.float().contiguous()
    heads, length, dim = keys.shape
    whole = length // block * block
    count = whole // size
    cut = Granules(
        torch.empty(heads, count, size - 1, dtype=torch.int64, device="cpu"),
        torch.empty(heads, count, dtype=torch.int64, device="cpu"),
        keys.new_empty(heads, count, dim),
        keys.new_empty(heads, count, dim),
        values.new_empty(heads, count, values.shape[2]),
        torch.empty(heads, count, dtype=torch.bool, device="cpu"),
    )
    points = keys[:, :whole] @ frame
    likeness = principal(points.view(-1, block, dim), heads)
    likeness = likeness.view(heads, whole, likeness.shape[2])
    # Arguments, not constants of the compiled code: its copy on disk would outlive a change of them.
    numbers = (block, size, FAR, APART, SQUARINGS)
    for head in zip(likeness, points, keys, values, *cut, strict=True):
        _cut_blocks(*numbers, *(part.numpy() for part in head))
    return cut


@jit(SUMS)
def _cut_blocks(
    block, size, far, apart, squarings, likeness, points, keys, values, order, odd, mean, variance, value, scattered
):
    """Fills the `Granules` of one head from its whole blocks of `keys [n, D]`, placed at `points`, and `values`."""
    granules = block // size
    rest = block - granules
    distance, place = np.empty(block, np.float32), np.empty(block, np.int64)
    projection, index = np.empty(rest, np.float32), np.empty(rest, np.int64)
    width = likeness.shape[1]
    parts, moved = np.empty((width, rest), np.float32), np.empty((width, rest), np.float32)
    places, moved_places = np.empty(rest, np.int64), np.empty(rest, np.int64)
    for first in range(0, likeness.shape[0], block):
        _distances(points[first : first + block], distance)
        for i in range(block):
            place[i] = i
        _select(distance, place, block, rest)
        _select(distance, place, rest, (block - 1) // 2)
        least_far = far * distance[(block - 1) // 2]
        at = first // size
        for i in range(granules):
            odd[at + i] = first + place[rest + i]
        for i in range(rest):
            places[i] = first + place[i]
            for k in range(width - 1):
                parts[k, i] = likeness[places[i], k]
            parts[width - 1, i] = apart * distance[i] if distance[i] > least_far else np.float32(0)
        length = rest
        while length >= size:
            for start in range(0, rest, length):
                part = slice(start, start + length)
                _project(parts, start, start + length, squarings, projection[part])
                index[part] = np.arange(start, start + length)
                _select(projection[part], index[part], length, length // 2)
            for i in range(rest):
                moved_places[i] = places[index[i]]
            for k in range(width):
                for i in range(rest):
                    moved[k, i] = parts[k, index[i]]
            parts, moved = moved, parts
            places, moved_places = moved_places, places
            length //= 2
        for g in range(granules):
            own = places[g * length : (g + 1) * length]
            order[at + g] = own
            farthest = _sum_up(points, own, mean[at + g], variance[at + g])
            _average(keys, own, mean[at + g])
            _average(values, own, value[at + g])
            scattered[at + g] = farthest > least_far


@jit(SUMS)
def _distances(points, distance):
    """Of each point to the mean of all."""
    count, dim = points.shape
    mean = np.zeros(dim, np.float32)
    for i in range(count):
        for d in range(dim):
            mean[d] += points[i, d]
    mean /= np.float32(count)
    for i in range(count):
        total = np.float32(0)
        for d in range(dim):
            off = points[i, d] - mean[d]
            total += off * off
        distance[i] = np.sqrt(total)


@jit(SUMS)
def _project(points, begin, end, squarings, projection):
    """Of `points [width, n]` those from `begin` to `end`, which are centered here, along their principal direction."""
    width = points.shape[0]
    covariance = np.empty((width, width), np.float32)
    widest = 0
    for j in range(width):
        row = points[j, begin:end]
        row -= row.sum() / np.float32(end - begin)
        for k in range(j + 1):
            covariance[j, k] = covariance[k, j] = _dot(row, points[k, begin:end])
        if covariance[j, j] > covariance[widest, widest]:
            widest = j
    direction, turned = covariance[widest].copy(), np.empty(width, np.float32)
    for _ in range((1 << squarings) - 1):
        largest = np.float32(1e-30)  # equal keys have no direction
        for j in range(width):
            turned[j] = _dot(covariance[j], direction)
            largest = max(largest, abs(turned[j]))
        for j in range(width):
            direction[j] = turned[j] / largest
    projection[:] = 0
    for j in range(width):
        row = points[j, begin:end]
        for i in range(row.size):
            projection[i] += direction[j] * row[i]


@jit(SUMS)
def _dot(a, b):
    total = np.float32(0)
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@jit(SUMS)
def _select(numbers, index, count, rank):
    """Orders the first `count` of `numbers`, and `index` along, so that none before `rank` is above any from it on."""
    low, high = 0, count - 1
    while low < high:
        pivot = numbers[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while numbers[i] < pivot:
                i += 1
            while numbers[j] > pivot:
                j -= 1
            if i <= j:
                numbers[i], numbers[j] = numbers[j], numbers[i]
                index[i], index[j] = index[j], index[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            return


@jit(SUMS)
def _average(rows, own, mean):
    """Of the rows at `own`."""
    mean[:] = 0
    for position in own:
        for d in range(mean.size):
            mean[d] += rows[position, d]
    mean *= np.float32(1) / np.float32(own.size)


@jit(SUMS)
def _sum_up(points, own, mean, variance):
    """Writes the moments of the points at `own`; returns the largest distance from their mean."""
    _average(points, own, mean)
    variance[:] = 0
    farthest = np.float32(0)
    for position in own:
        distance = np.float32(0)
        for d in range(mean.size):
            off = points[position, d] - mean[d]
            variance[d] += off * off
            distance += off * off
        farthest = max(farthest, distance)
    variance *= np.float32(1) / np.float32(own.size)
    return np.sqrt(farthest)
