"""The front's books: which requests there are, which group serves each, and which processes form a group."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transformers.generation.continuous_batching.requests import GenerationOutput, RequestStatus

from ..scheduling import Request, least_loaded
from .moves import ranks_of
from .requests import FlyingState


@dataclass
class Entry:
    """A request: its state as it came, who drives it (None while it is held), its last answer."""

    state: FlyingState
    driver: int | None = None
    seen: GenerationOutput | None = None


class Front:
    """
    Books of the process that takes requests in. Loops, lines and threads are others' business; whoever acts on an
    answer of these books holds `lock` until it has acted.

    Attributes:
        groups (`dict[int, tuple[int, ...]]`): ranks that run as one, by their driver.
        is_open (`bool`): whether requests may go to groups; they are held otherwise.
    """

    def __init__(self, world: int):
        self.lock = threading.RLock()
        self.groups: dict[int, tuple[int, ...]] = {rank: (rank,) for rank in range(world)}
        self.is_open = True
        self._entries: dict[str, Entry] = {}

    def add(self, state: FlyingState) -> None:
        """
        Raises:
            ValueError: if its id is in use.
        """
        if state.request_id in self._entries:
            raise ValueError(
                f"request_id={state.request_id!r} is in use. Leave it out, or wait for the first one's end."
            )
        self._entries[state.request_id] = Entry(state)

    def drop(self, request_id: str) -> int | None:
        """Forgets a request; who drives it."""
        entry = self._entries.pop(request_id, None)
        return None if entry is None else entry.driver

    def assign(self, budgets: Mapping[int, int]) -> list[tuple[int, FlyingState]]:
        """Who gets which of the held requests, higher priorities first; what fits no group of now stays held."""
        if not self.is_open:
            return []
        loads = dict.fromkeys(self.groups, 0)
        held: list[Entry] = []
        for entry in self._entries.values():
            if entry.driver is None:
                held.append(entry)
            elif entry.driver in loads:
                loads[entry.driver] += entry.state.most_tokens
        found: list[tuple[int, FlyingState]] = []
        for entry in sorted(held, key=lambda each: -each.state.priority):
            state = entry.state
            fitting = [d for d, ranks in self.groups.items() if state.most_tokens <= budgets[len(ranks)]]
            if fitting:
                entry.driver = fitting[least_loaded([loads[driver] for driver in fitting])]
                loads[entry.driver] += state.most_tokens
                found.append((entry.driver, state))
        return found

    def take(self, outputs: Sequence[GenerationOutput]) -> list[GenerationOutput]:
        """Those answers that somebody still waits for."""
        known = [output for output in outputs if output.request_id in self._entries]
        for output in known:
            self._entries[output.request_id].seen = output
            if output.is_finished():
                del self._entries[output.request_id]
        return known

    def regroup(self, width: int, drivers: Mapping[str, int], world: int) -> None:
        """After a switch."""
        self.groups = {first: ranks_of(first, width) for first in range(0, world, width)}
        for request_id, driver in drivers.items():
            if request_id in self._entries:
                self._entries[request_id].driver = driver

    def dissolve(self, rank: int, is_dead: bool) -> list[GenerationOutput]:
        """
        The loop of a process ended, and with it its group's: those that live go on alone. Who drove fails its requests
        itself, with the tokens so far, unless it is the one that died: then the answers are returned.
        """
        driver = next((driver for driver, ranks in self.groups.items() if rank in ranks), None)
        if driver is None:
            return []
        self.groups |= {each: (each,) for each in self.groups.pop(driver)}
        if not is_dead:
            return []
        del self.groups[rank]
        orphans = [entry for entry in self._entries.values() if entry.driver == driver == rank]
        for entry in orphans:
            del self._entries[entry.state.request_id]
        error = f"Process {rank}, which served this request, is gone."
        return [_failure(entry, error) for entry in orphans]

    def give_up(self, budget: int) -> list[GenerationOutput]:
        """Forgets what is held and may grow beyond `budget` tokens, the most that will be had; the answers to it."""
        hopeless = [each for each in self._entries.values() if each.driver is None and each.state.most_tokens > budget]
        for entry in hopeless:
            del self._entries[entry.state.request_id]
        error = "It may have {} tokens, and no group holds more than {} any more. Shorten it or restart all processes."
        return [_failure(entry, error.format(entry.state.most_tokens, budget)) for entry in hopeless]

    def too_large(self, budget: int) -> FlyingState | None:
        """A request that has begun and may grow beyond `budget` tokens."""
        begun = (entry.state for entry in self._entries.values() if entry.driver is not None)
        return next((state for state in begun if state.most_tokens > budget), None)

    def requests(self) -> tuple[list[Request], list[Request]]:
        """Held and begun ones, as a policy sees them."""
        sides: tuple[list[Request], list[Request]] = [], []
        for entry in self._entries.values():
            state, has_begun = entry.state, entry.driver is not None
            is_prefilling = has_begun and state.streaming and entry.seen is None
            request = Request(len(state.initial_tokens), state.max_new_tokens or 0, state.priority, is_prefilling)
            sides[has_begun].append(request)
        return sides


def _failure(entry: Entry, error: str) -> GenerationOutput:
    answer = entry.seen or entry.state.to_generation_output()  # what was seen is the user's and stays as it was
    return replace(answer, status=RequestStatus.FAILED, error=error)
