"""One instance: its ranks step together, step after step, in simulated time."""

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from typing import Any

import simpy

from .rank import Rank
from .requests import Job
from .settings import Instance
from .step import Batch, StepTime

STATES = ("idle", "decode", "prefill")


class Engine:
    """
    An instance that serves, as one process of the simulation.

    Args:
        env: simulated time.
        ranks: those that step together; one, unless attention is data parallel or layers are in stages.
        step_time: the formula.
        instance: its settings.
        on_end: called with each job that is through.

    A request that arrives is read between steps. With async scheduling a batch is composed when the batch before it
    starts, so it holds nothing that arrived later, and what a batch frees is free for the next but one.
    """

    def __init__(
        self,
        env: simpy.Environment,
        ranks: Sequence[Rank],
        step_time: StepTime,
        instance: Instance,
        on_end: Callable[["Engine", Job], None],
    ):
        self.env, self.ranks, self.step_time, self.instance, self.on_end = env, ranks, step_time, instance, on_end
        self.inbox: list[tuple[Job, Rank]] = []
        self.unread: dict[Rank, int] = defaultdict(int)
        self.tokens_ahead: dict[Rank, int] = dict.fromkeys(ranks, 0)
        self.rank_of: dict[Job, Rank] = {}
        self.wake: simpy.Event | None = None
        self.halted: simpy.Event | None = None
        self.extra = 0.0  # seconds that the next step takes longer
        self.seconds = dict.fromkeys(STATES, 0.0)
        env.process(self.run())

    def submit(self, job: Job, rank: Rank) -> None:
        """A request is at the door. Raises a ValueError for one that the KV blocks can never hold."""
        pool, request = rank.pool, job.request
        needed = pool.blocks_for(request.input_tokens + request.output_tokens)
        if needed > pool.total:
            raise ValueError(
                f"request {request.number} needs {needed} KV blocks ({request.input_tokens} + {request.output_tokens} "
                f"tokens), and the instance has {pool.total}: give it more memory, more devices, or a shorter request"
            )
        self.inbox.append((job, rank))
        self.unread[rank] += 1
        self.tokens_ahead[rank] += request.input_tokens + request.output_tokens
        self.poke()

    def poke(self) -> None:
        """Wakes it, if it found nothing to do."""
        if self.wake is not None:
            self.wake.succeed()
            self.wake = None

    def halt(self) -> simpy.Event:
        """Makes no further batch. The event comes when those under way are through."""
        self.halted = self.env.event()
        self.poke()
        return self.halted

    def release(self, moves: bool) -> tuple[list[Job], int]:
        """What `Rank.release` gives, of a halted engine; it goes on with what is submitted next."""
        self._read_inbox()
        released = [rank.release(moves) for rank in self.ranks]
        self.halted = None
        self.rank_of.clear()
        self.tokens_ahead = dict.fromkeys(self.ranks, 0)
        return [job for jobs, _ in released for job in jobs], sum(held for _, held in released)

    def run(self) -> Generator[simpy.Event, Any, None]:
        env, is_async = self.env, self.instance.scheduler.async_scheduling
        current: list[Batch | None] | None = None
        while True:
            self._read_inbox()
            following = self._schedule()
            if current is None:
                if following is None:
                    if self.halted is not None and not self.halted.triggered:
                        self.halted.succeed()
                    since = env.now
                    self.wake = env.event()
                    yield self.wake
                    self.seconds["idle"] += env.now - since
                    continue
                current, following = following, self._schedule() if is_async else None
            seconds = self.step_time(current) + self.extra + self._handover(current)
            self.extra = 0.0
            yield env.timeout(seconds)
            self.seconds["prefill" if any(b and b.chunks for b in current) else "decode"] += seconds
            self._complete(current)
            current = following

    def _read_inbox(self) -> None:
        for job, rank in self.inbox:
            if job.queued < 0:
                job.queued = self.env.now
            self.rank_of[job] = rank
            rank.submit(job)
        self.inbox.clear()
        self.unread.clear()

    def _schedule(self) -> list[Batch | None] | None:
        if self.halted is not None:
            return None
        now = self.env.now
        batches = [rank.schedule(now) for rank in self.ranks]
        return batches if any(batches) else None

    def _handover(self, batches: list[Batch | None]) -> float:
        """Seconds for the KV that leaves with this step, or has come for it."""
        instance = self.instance
        if instance.role == "both" or not instance.handover_s:
            return 0.0
        begun = [job for batch in batches if batch is not None for job in batch.begins]
        return instance.handover_s * sum(job.is_carried or instance.role == "prefill" for job in begun)

    def _complete(self, batches: list[Batch | None]) -> None:
        now = self.env.now
        for rank, batch in zip(self.ranks, batches):
            if batch is not None:
                for job in rank.complete(batch, now):
                    del self.rank_of[job]
                    self.tokens_ahead[rank] -= job.request.input_tokens + job.request.output_tokens
                    self.on_end(self, job)
