"""Seconds of the collectives between `ranks` devices, as rings do them; `volume` is the bytes of the whole buffer."""

from .settings import Link


def all_reduce(link: Link, volume: float, ranks: int) -> float:
    return reduce_scatter(link, volume, ranks) + all_gather(link, volume, ranks)


def all_gather(link: Link, volume: float, ranks: int) -> float:
    """Each of `ranks - 1` messages carries a rank's share."""
    return link.seconds(volume * (ranks - 1) / ranks, ranks - 1)


def reduce_scatter(link: Link, volume: float, ranks: int) -> float:
    return link.seconds(volume * (ranks - 1) / ranks, ranks - 1)
