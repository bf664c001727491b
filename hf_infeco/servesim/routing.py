"""Who gets a request. A policy is a function of the request and the ranks that may take it."""

import random
import zlib
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING

from .rank import Rank
from .requests import Request

if TYPE_CHECKING:
    from .engine import Engine

Target = tuple["Engine", Rank]
Policy = Callable[[Request, Sequence[Target]], Target]


def round_robin(seed: int) -> Policy:
    """In turn."""
    turns = count()
    return lambda request, targets: targets[next(turns) % len(targets)]


def random_choice(seed: int) -> Policy:
    """By the dice of `seed`."""
    dice = random.Random(seed)
    return lambda request, targets: targets[dice.randrange(len(targets))]


def least_requests(seed: int) -> Policy:
    """The fewest requests, waiting ones counted four times, as vLLM's balancer does; ties in turn."""
    turns = count()

    def choose(request: Request, targets: Sequence[Target]) -> Target:
        first = next(turns) % len(targets)
        order = [*targets[first:], *targets[:first]]
        return min(order, key=lambda target: target[1].load + 4 * target[0].unread.get(target[1], 0))

    return choose


def least_tokens(seed: int) -> Policy:
    """The fewest tokens that the requests there still bring."""
    return lambda request, targets: min(targets, key=lambda target: target[0].tokens_ahead[target[1]])


def prefix(seed: int) -> Policy:
    """Where most of the prompt's blocks are at hand, unless it has twice the load of the least busy one."""

    def choose(request: Request, targets: Sequence[Target]) -> Target:
        limit = 2 * min(rank.load for _, rank in targets) + 4
        free = [target for target in targets if target[1].load <= limit]

        def rank_of(target: Target) -> tuple[int, int]:
            pool = target[1].pool
            return -pool.reusable(request.hash_ids, request.hash_block, request.input_tokens), target[1].load

        return min(free, key=rank_of)

    return choose


def session(seed: int) -> Policy:
    """The same for all requests of a session; requests without one in turn."""
    turns = count()

    def choose(request: Request, targets: Sequence[Target]) -> Target:
        place = next(turns) if request.session is None else zlib.crc32(request.session.encode())
        return targets[place % len(targets)]

    return choose


POLICIES: dict[str, Callable[[int], Policy]] = {
    "round_robin": round_robin,
    "random": random_choice,
    "least_requests": least_requests,
    "least_tokens": least_tokens,
    "prefix": prefix,
    "session": session,
}
