"""Who serves a request after a switch, and which heads of its KV go from where to where. Pure functions."""

from collections.abc import Sequence
from typing import NamedTuple

from ..scheduling import least_loaded


class Holding(NamedTuple):
    """
    A running request.

    Attributes:
        request_id (`str`): of the request.
        ranks (`tuple[int, ...]`): that hold its KV, each some heads or all of them; the first one drives.
        num_tokens (`int`): in the cache.
    """

    request_id: str
    ranks: tuple[int, ...]
    num_tokens: int


class Transfer(NamedTuple):
    """Heads `first` to `last` (not included) of a request, from one process to another or to itself."""

    source: int
    target: int
    first: int
    last: int


def ranks_of(driver: int, width: int) -> tuple[int, ...]:
    return tuple(range(driver, driver + width))


def new_drivers(holdings: Sequence[Holding], tokens: Sequence[int], world: int, width: int) -> list[int]:
    """
    The first rank of the group that serves each request at `width`: one that shares a process with those that hold
    it, where it moves least, and of these the one with the fewest `tokens`. The same in every process.
    """
    loads = [0] * (world // width)
    drivers = []
    for holding, num_tokens in zip(holdings, tokens, strict=True):
        near = [any(rank // width == index for rank in holding.ranks) for index in range(len(loads))]
        index = least_loaded(loads, near)
        loads[index] += num_tokens
        drivers.append(index * width)
    return drivers


def transfers(
    old_ranks: Sequence[int], old_heads: Sequence[int], new_ranks: Sequence[int], new_heads: Sequence[int], total: int
) -> list[Transfer]:
    """
    What has to go where, so that each new rank has its heads.

    Args:
        old_heads, new_heads (`Sequence[int]`): heads that each rank holds; all `total` where heads are not split.
    """
    held = dict(zip(old_ranks, spans(old_heads, total), strict=True))
    moves = []
    for rank, (first, last) in zip(new_ranks, spans(new_heads, total), strict=True):
        if rank in held and held[rank][0] <= first and last <= held[rank][1]:
            moves.append(Transfer(rank, rank, first, last))
            continue
        done = first
        while done < last:
            source = next(each for each, span in held.items() if span[0] <= done < span[1])
            until = min(last, held[source][1])
            moves.append(Transfer(source, rank, done, until))
            done = until
    return moves


def spans(heads: Sequence[int], total: int) -> list[tuple[int, int]]:
    """First and last + 1 head of each rank of a group."""
    if all(count == total for count in heads):
        return [(0, total)] * len(heads)
    ends = [sum(heads[: index + 1]) for index in range(len(heads))]
    return [(end - count, end) for end, count in zip(ends, heads, strict=True)]
