"""One switch, while all loops are parked: requests and KV go to the new groups, or everything stays as it was."""

import time
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from transformers.generation.continuous_batching.requests import RequestState

from .moves import Holding, Transfer, new_drivers, ranks_of, spans, transfers
from .pool import Pool
from .switcher import ParallelSwitcher


class Costs(NamedTuple):
    """
    What moving and computing cost, as measured in the front; everybody decides by the same numbers.

    Attributes:
        seconds_per_byte, seconds_per_move (`float`): of KV that goes to another process.
        seconds_per_token (`float`): of a prompt that is computed again.
    """

    seconds_per_byte: float
    seconds_per_move: float
    seconds_per_token: float

    def recomputes(self, num_tokens: int, num_bytes: int) -> bool:
        """Whether computing a request's KV again is cheaper than to move it."""
        return num_tokens * self.seconds_per_token < self.seconds_per_move + num_bytes * self.seconds_per_byte


class Manifest(NamedTuple):
    """What a process brings into a switch. Only who drives a group lists its requests."""

    target: int
    width: int
    active: list[RequestState]
    waiting: list[RequestState]
    is_ready: bool


class Disagreement(RuntimeError):
    """A switch that did not come about, with nothing broken: the width is the one before."""


class Window:
    """
    The steps of a switch, in order: `gather`, `stage`, `exchange`, then `move_in`, which can be taken back by
    `roll_back`. Until then nothing has been changed. Collective over `world`; loops must be parked.

    Args:
        switcher, pool: of this process.
        scheduler: transformers', which holds the requests of this process.
        world: a gloo group of all processes, for what is agreed on.
        data: a group of all processes on the model's device, for KV.
    """

    def __init__(self, switcher: ParallelSwitcher, pool: Pool, scheduler: Any, world: Any, data: Any, timeout: float):
        self.switcher, self.pool, self.scheduler = switcher, pool, scheduler
        self.world, self.data, self.limit = world, data, timedelta(seconds=timeout)
        self.rank = dist.get_rank()
        self.moved_bytes = self.num_recomputed = 0
        self.flip_s = 0.0
        self._undo: list[Any] = []

    # ------------------------------------------------------------ before anything is changed

    def gather(self, target: int, is_ready: bool) -> None:
        """
        Everybody's requests.

        Raises:
            Disagreement: if somebody is not ready, or after another width.
        """
        scheduler, width = self.scheduler, self.switcher.width
        active = list(scheduler.active_requests.values())
        waiting = [scheduler.waiting_requests[each] for each in scheduler.waiting_requests_order]
        drives = self.rank % width == 0
        mine = Manifest(target, width, active if drives else [], waiting if drives else [], is_ready)
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, mine, group=self.world)
        if any(each.target != target or not each.is_ready for each in found):
            wanted = [each.target if each.is_ready else "not ready" for each in found]
            raise Disagreement(f"Processes do not agree on a switch: {wanted}. The width stays {width}.")
        self.target = target
        own = {state.request_id: state for state in active + waiting}
        listed = [(rank, state) for rank, each in enumerate(found) for state in each.active]
        self.holdings = [
            Holding(state.request_id, ranks_of(rank, found[rank].width), state.current_len()) for rank, state in listed
        ]
        queued = [(rank, state) for rank, each in enumerate(found) for state in each.waiting]
        self.homes = [*self.holdings, *(Holding(s.request_id, ranks_of(r, found[r].width), 0) for r, s in queued)]
        # A request that this process has is this very object, not the copy that came with the manifest.
        self.active = [own.get(state.request_id, state) for _, state in listed]
        self.waiting = [own.get(state.request_id, state) for _, state in queued]

    def stage(self, costs: Costs) -> None:
        """Decides who serves what, and copies this process's KV of what moves out of the pool."""
        loads = [len(state.initial_tokens) + state.generated_len() for state in [*self.active, *self.waiting]]
        self.drivers = new_drivers(self.homes, loads, dist.get_world_size(), self.target)
        self.recomputed = set()
        for holding in self.holdings:
            if holding.num_tokens and costs.recomputes(holding.num_tokens, self._bytes_to_move(holding)):
                self.recomputed.add(holding.request_id)
        self.staged = {
            state.request_id: self.pool.read(state)
            for state, holding in zip(self.active, self.holdings, strict=True)
            if self.rank in holding.ranks
        }

    def _bytes_to_move(self, holding: Holding) -> int:
        """By what all processes know alike: with uneven heads, each one's own blocks would tell it something else."""
        stays = 1 / max(len(holding.ranks), self.target)
        return int(self.pool.bytes_per_token() * holding.num_tokens * (1 - stays))

    def exchange(self) -> None:
        """Sends and receives heads, so that each process of a new group has those of its seat."""
        self.arrived: dict[str, dict[str, torch.Tensor]] = {}
        pending: list[Any] = []
        kept_alive: list[torch.Tensor] = []  # what is being sent
        for holding, driver in zip(self.holdings, self.drivers, strict=False):  # drivers of waiting ones come last
            if holding.request_id in self.recomputed or not holding.num_tokens:
                continue
            for move in self._moves(holding, driver):
                if self.rank in (move.source, move.target):
                    pending += self._move(holding, move, kept_alive)
        for work in pending:
            work.wait(self.limit)

    def _moves(self, holding: Holding, driver: int) -> list[Transfer]:
        heads = self.switcher.plan.heads
        old, new = heads(len(holding.ranks)), heads(self.target)
        return transfers(
            holding.ranks, old, ranks_of(driver, self.target), new, self.switcher.plan.num_key_value_heads
        )

    def _move(self, holding: Holding, move: Transfer, kept_alive: list[torch.Tensor]) -> list[Any]:
        works: list[Any] = []
        for name in self.pool.cache.cache_allocators:
            if move.source == self.rank:
                old_first = self._first_head(holding)
                part = self.staged[holding.request_id][name].narrow(3, move.first - old_first, move.last - move.first)
                if move.target != self.rank:
                    kept_alive.append(part.contiguous())
                    self.moved_bytes += part.nbytes
                    works.append(dist.isend(kept_alive[-1], move.target, group=self.data))
                    continue
                self._seat_of(holding, name).narrow(3, *self._place(move)).copy_(part)
            else:
                shape = self.pool.shape(name, holding.num_tokens, move.last - move.first)
                part = torch.empty(shape, dtype=self.pool.cache.dtype, device=self.pool.cache.device)
                works.append(_Arrival(dist.irecv(part, move.source, group=self.data), part, self, holding, name, move))
        return works

    def _first_head(self, holding: Holding) -> int:
        """Of those of a request that lie in this process."""
        plan = self.switcher.plan
        return spans(plan.heads(len(holding.ranks)), plan.num_key_value_heads)[holding.ranks.index(self.rank)][0]

    def _place(self, move: Transfer) -> tuple[int, int]:
        """Where heads of a transfer lie among those of this process's new seat."""
        seat = self.switcher.seat(self.target)
        first, _ = spans(seat.heads, self.switcher.plan.num_key_value_heads)[seat.rank]
        return move.first - first, move.last - move.first

    def _seat_of(self, holding: Holding, name: str) -> torch.Tensor:
        tensors = self.arrived.setdefault(holding.request_id, {})
        if name not in tensors:
            seat, cache = self.switcher.seat(self.target), self.pool.cache
            shape = self.pool.shape(name, holding.num_tokens, seat.heads[seat.rank])
            tensors[name] = torch.empty(shape, dtype=cache.dtype, device=cache.device)
        return tensors[name]

    # ------------------------------------------------------------ the change, and the way back

    def move_in(self) -> None:
        """Lays the pool out, puts the KV in and exchanges the views. `roll_back` undoes it."""
        scheduler = self.scheduler
        before = self.pool.saved(), scheduler.active_requests, scheduler.waiting_requests, self.switcher.width
        order = list(scheduler.waiting_requests_order)
        self._undo.append((*before, order))
        self.pool.lay_out(self.switcher.seat(self.target))
        active, again = {}, []
        here = self.rank - self.rank % self.target
        for state, driver in zip(self.active, self.drivers, strict=False):
            if driver != here:
                continue
            # The same answer in the whole group: its processes have the same pools and see the same order.
            is_held = state.current_len() and state.request_id not in self.recomputed
            if state.current_len() == 0 or (is_held and self.pool.cache.can_store_request_tokens(state, 0)):
                active[state.request_id] = state
                if is_held:
                    self.pool.write(state, self.arrived[state.request_id])
            else:
                again.append(state.create_equivalent_initial_request())
        self.num_recomputed = len(again)
        queued = zip(self.waiting, self.drivers[len(self.active) :], strict=True)
        waiting = again + [state for state, driver in queued if driver == here]
        scheduler.active_requests = active
        scheduler.waiting_requests = {state.request_id: state for state in waiting}
        scheduler.waiting_requests_order.clear()
        scheduler.waiting_requests_order.extend(state.request_id for state in waiting)
        scheduler.starved_requests, scheduler.block_new_requests = [], False
        start = time.perf_counter()
        self.switcher.flip(self.target)
        self.flip_s = time.perf_counter() - start

    def owners(self) -> dict[str, int]:
        """Who drives each request after the switch."""
        states = [*self.active, *self.waiting]
        return {state.request_id: driver for state, driver in zip(states, self.drivers, strict=True)}

    def agree(self, is_well: bool) -> bool:
        """Whether everybody is well, as everybody then knows."""
        vote = torch.tensor([int(is_well)], dtype=torch.int64, device="cpu")
        dist.all_reduce(vote, op=dist.ReduceOp.MIN, group=self.world)
        return bool(vote.item())

    def roll_back(self) -> None:
        """Everything as it was before `move_in`; harmless before it, and twice."""
        while self._undo:
            saved, active, waiting, width, order = self._undo.pop()
            self.switcher.flip(width)
            self.pool.restore(saved)
            self.pool.cache.evict_cached_blocks()  # their bytes are gone, and a prompt might match them
            scheduler = self.scheduler
            scheduler.active_requests, scheduler.waiting_requests = active, waiting
            scheduler.waiting_requests_order.clear()
            scheduler.waiting_requests_order.extend(order)
            for state in active.values():
                if state.current_len():
                    self.pool.write(state, self.staged[state.request_id])


class _Arrival(NamedTuple):
    """A receive under way, and where its heads go."""

    work: Any
    part: torch.Tensor
    window: Window
    holding: Holding
    name: str
    move: Transfer

    def wait(self, limit: timedelta) -> None:
        self.work.wait(limit)
        self.window._seat_of(self.holding, self.name).narrow(3, *self.window._place(self.move)).copy_(self.part)
