"""
A cache in the manner of TurboQuant (arXiv 2504.19874), to compare with and nothing else.

A token's vector is divided by its norm, which is kept in float16, and turned by a random rotation. The coordinates of
a random direction are nearly Gaussian, whatever the channels were like before, so each is rounded to the nearest of
the 2^bits levels that are best for a Gaussian. No group has a scale: `bits + 16 / D` per number. The paper's one-bit
correction of inner products is left out.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from math import erf, exp, pi, sqrt

import torch

Pair = tuple[torch.Tensor, torch.Tensor]
LEAST_NORM = 1e-6


def round_trip(key_bits: int, value_bits: int) -> Callable[[torch.Tensor, torch.Tensor], Pair]:
    """What keys `[B, Hkv, N, D]` and values `[B, Hkv, N, Dv]` are after it, float32."""
    return lambda key, value: (_round(key, key_bits), _round(value, value_bits))


@cache
def gaussian_levels(bits: int) -> torch.Tensor:
    """The 2^bits levels of least squared error for a standard Gaussian (Lloyd 1982, Max 1960), ascending."""
    count = 2**bits
    levels = [(2 * number + 1) / count - 1 for number in range(count)]
    for _ in range(1000):
        edges = [-8.0, *((low + high) / 2 for low, high in pairwise(levels)), 8.0]
        levels = [_gaussian_mean(low, high) for low, high in pairwise(edges)]
    return torch.tensor(levels)


def _gaussian_mean(low: float, high: float) -> float:
    """Mean of a standard Gaussian between two edges."""
    density = (exp(-low * low / 2) - exp(-high * high / 2)) / sqrt(2 * pi)
    return density / ((erf(high / sqrt(2)) - erf(low / sqrt(2))) / 2)


@cache
def _rotation(dim: int) -> torch.Tensor:
    """One random rotation for every layer and head: the Q of a Gaussian matrix."""
    gaussian = torch.randn(dim, dim, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(gaussian).Q


def _round(states: torch.Tensor, bits: int) -> torch.Tensor:
    states = states.float()
    dim = states.shape[-1]
    rotation, levels = _rotation(dim).to(states.device), gaussian_levels(bits).to(states.device)
    norm = states.norm(dim=-1, keepdim=True).half().float().clamp(min=LEAST_NORM)
    coordinates = states / norm @ rotation * sqrt(dim)  # of variance 1
    nearest = torch.bucketize(coordinates, (levels[1:] + levels[:-1]) / 2)
    return levels[nearest] @ rotation.T * (norm / sqrt(dim))
