"""What a row visits: the numbers that every backend of S2O takes."""

from typing import NamedTuple


class S2OSettings(NamedTuple):
    """
    Attributes:
        tau: a granule that promises less than this share of the row's mass is not visited; 0 visits every key.
        target_mass: lowers the threshold, tile by tile, until the estimated unvisited share of the mass is at most
            `1 - target_mass`.
        segment: queries that share one permutation of the past, and attend their own keys exactly. Segments lie at
            multiples of it, counted in keys.
        granule: one odd key and `granule - 1` like ones, which are judged and visited together; `segment` is `granule`
            times a power of two.
        compensate: whether unvisited granules enter by their means; else they are left out of the softmax.
    """

    tau: float
    target_mass: float | None = None
    segment: int = 512
    granule: int = 32
    compensate: bool = True
