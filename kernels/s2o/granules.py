"""
The past of a sequence cut into granules, small groups of like keys told by mean and variance, and odd keys.

One idea: keys that are alike get alike weight from any query, wherever in the text they lie. So a block of keys is
permuted until neighbours are alike (an index array, made anew for every prompt), and a granule of neighbours is judged
as one, by the mean and the variance of its keys: whether it is worth a visit, and what it weighs without one. A few
keys are like no other (sinks, the stripes that whole segments look at). They would spoil any granule; every query
attends them exactly.

Source: S2O, arXiv 2602.22575, orders keys by one score per segment; here likeness orders them (docs/s2o.md tells why).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

FAR = 1.6  # times the median distance in a block: beyond it, a key is like no other
APART = 100  # times a far key's distance, so that halving tells it from those that are near
DIRECTIONS = 23  # of likeness: those that follow tell no two keys apart
SAMPLED = 4  # that many times more keys than tell a head's directions: the first of each block
SQUARINGS = 3  # of the covariance: its eighth power points along the principal direction; more cut no better
TINY = torch.finfo(torch.float32).tiny  # equal keys have no direction, and any order of them will do


class Granules(NamedTuple):
    """
    Keys of H heads in G granules of `size - 1` like keys and, for each granule, one odd key.

    Attributes:
        order (`torch.Tensor` of int64, `[H, G, size - 1]`): positions of the keys of each granule.
        odd (`torch.Tensor` of int64, `[H, G]`): positions of the odd keys, which belong to no granule.
        mean (`torch.Tensor` of float32, `[H, G, D]`): of the keys.
        variance (`torch.Tensor` of float32, `[H, G, D]`): of the keys in each dimension of the queries' frame.
        value (`torch.Tensor` of float32, `[H, G, Dv]`): mean value.
        scattered (`torch.Tensor` of bool, `[H, G]`): has a key so far from the mean that the variance, dimension by
            dimension, would not tell what a query may find in its direction.
    """

    order: torch.Tensor
    odd: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    value: torch.Tensor
    scattered: torch.Tensor


def cut_into_granules(
    keys: torch.Tensor, values: torch.Tensor, frame: torch.Tensor, block: int, size: int
) -> Granules:
    """
    Granules of all whole blocks of `block` keys; `block` is `size` times a power of two.

    Args:
        keys, values: `[H, n, D]` and `[H, n, Dv]`.
        frame: `[H, D, D]`, takes keys to where a distance is what a query may tell them apart by, whichever it is.
    """
    heads, length, dim = keys.shape
    whole = length // block * block
    placed = keys[:, :whole].float() @ frame
    points = placed.reshape(-1, block, dim)  # [H * blocks, block, D]
    oddness = torch.linalg.vector_norm(points - points.mean(1, keepdim=True), dim=-1)
    oddness, by_oddness = oddness.sort(1, descending=True)
    odd, rest = by_oddness.split([block // size, block - block // size], dim=1)
    far = FAR * oddness[:, block // 2, None]
    rest_oddness = oddness[:, block // size :]
    likeness = _take(principal(points, heads), rest)
    # A direction of their own, which outweighs all others, halves what is far into as few granules as hold it.
    likeness[..., -1] = torch.where(rest_oddness > far, APART * rest_oddness, 0)
    order = rest.gather(1, order_by_likeness(likeness, size - 1))
    starts = torch.arange(0, whole, block, device=keys.device)[:, None]

    def in_sequence(indices: torch.Tensor) -> torch.Tensor:
        return (indices.reshape(heads, -1, indices.shape[1]) + starts).flatten(1)

    order, odd = in_sequence(order).unflatten(1, (-1, size - 1)), in_sequence(odd)
    mean, value = (_take(x, order).float().mean(2) for x in (keys, values))
    grouped = _take(placed, order)  # [H, G, size - 1, D]
    grouped -= grouped.mean(2, keepdim=True)
    squares = grouped * grouped  # a product is much faster here than a square, or torch.var
    distances = squares.sum(-1).sqrt()  # [H, G, size - 1]
    scattered = distances.amax(2).unflatten(1, (-1, block // size)) > far.view(heads, -1, 1)
    return Granules(order, odd, mean, squares.mean(2), value, scattered.flatten(1))


def principal(points: torch.Tensor, heads: int) -> torch.Tensor:
    """
    `points [heads * blocks, n, D]` in the dimensions in which those of a head differ most.

    Returns:
        `[heads * blocks, n, at most DIRECTIONS + 1]`; the last column is zero, and free for the caller.
    """
    dim = points.shape[2]
    sample = points[:, : -(-points.shape[1] // SAMPLED)].reshape(heads, -1, dim)
    sample = sample - sample.mean(1, keepdim=True)
    covariance = sample.mT @ sample  # [heads, D, D]
    # Orthogonal iteration: near enough to the principal directions. An eigensolver would make the host wait for a GPU.
    directions = covariance[..., :DIRECTIONS]
    for _ in range(2):
        directions = torch.linalg.qr(covariance @ directions).Q  # [heads, D, DIRECTIONS]
    likeness = points.reshape(heads, -1, dim) @ F.pad(directions, (0, 1))
    return likeness.view(*points.shape[:2], directions.shape[2] + 1)


def order_by_likeness(points: torch.Tensor, size: int) -> torch.Tensor:
    """
    Permutes each block of `points [B, n, D]` so that every run of `size` neighbours is alike; `n = size * 2**k`.

    A tree of halvings: each part is cut at its median along its principal direction.

    Returns:
        `torch.Tensor` of int64 `[B, n]`, indices into the block.
    """
    batch, length, dim = points.shape
    order = torch.arange(length, device=points.device).expand(batch, length)
    parts = points
    while parts.shape[1] > size:
        centered = parts - parts.mean(1, keepdim=True)  # [parts, m, D]
        power = centered.mT @ centered  # of the covariance [parts, dim, dim]
        widest = power.diagonal(dim1=1, dim2=2).argmax(1)[:, None, None]
        for _ in range(SQUARINGS):
            power = power / power.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp(min=TINY)
            power = power @ power
        # Any column would do that is not orthogonal to the principal direction.
        direction = power.gather(2, widest.expand(-1, dim, 1))
        halves = (centered @ direction).squeeze(-1).argsort(1)  # [parts, m]
        order = order.reshape(halves.shape).gather(1, halves).view(batch, length)
        parts = _take(parts, halves).view(-1, halves.shape[1] // 2, dim)
    return order


def _take(tensor: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`tensor [H, n, D]` at `positions [H, ...]`: `[H, ..., D]`."""
    heads, length = tensor.shape[:2]
    starts = torch.arange(heads, device=tensor.device) * length
    rows = (positions.flatten(1) + starts[:, None]).flatten()
    return tensor.flatten(0, 1).index_select(0, rows).view(*positions.shape, *tensor.shape[2:])
