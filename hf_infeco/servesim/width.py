"""
width(t): devices whose tensor parallel width changes while requests run, as `hf_infeco.flying` does it.

There is a set of engines for each width, of which one is at work. The engine's own policy objects look at what waits
and runs; for a switch the engines finish the steps under way, weights and links change, the running requests' KV is
moved over the link or computed anew, and the first step at the new width takes longer. How long a switch and that
step take is not known here: the settings say it.
"""

from collections import deque
from collections.abc import Callable, Generator, Mapping
from typing import Any

import simpy

from .. import scheduling
from .engine import STATES, Engine
from .rank import Rank
from .requests import Job, Request
from .settings import Instance, Link, Switching


class Group:
    """
    What a router sees of such devices: one place that takes requests. It is its own rank.

    Args:
        env: simulated time.
        instance: its settings.
        how: when and at what cost it switches.
        engines: by width, those that its groups would be. Their `on_end` is set here.
        on_end: called with each job that is through.
    """

    def __init__(
        self,
        env: simpy.Environment,
        instance: Instance,
        how: Switching,
        engines: Mapping[int, list[Engine]],
        on_end: Callable[[Any, Job], None],
    ):
        self.env, self.instance, self.how, self.engines, self.on_end = env, instance, how, engines, on_end
        self.policy = scheduling.make_policy(self.how.policy, **self.how.settings)
        self.width = instance.tp
        self.lobby: deque[Job] = deque()  # arrived, and in no engine yet
        self.open = 0
        self.is_switching = False
        self.wake: simpy.Event | None = None
        self.switches: list[tuple[float, int, str]] = []
        self.unread: dict[Any, int] = {}
        for each in engines.values():
            for engine in each:
                engine.on_end = self._ended
        env.process(self.run())

    # ---------------------------------------------------------------- what a router asks

    @property
    def ranks(self) -> list["Group"]:
        return [self]

    @property
    def pool(self) -> Any:
        return self.engines[self.width][0].ranks[0].pool

    @property
    def load(self) -> int:
        return 4 * len(self.lobby) + sum(rank.load for rank in self._ranks())

    @property
    def tokens_ahead(self) -> dict[Any, int]:
        waiting = sum(job.request.input_tokens + job.request.output_tokens for job in self.lobby)
        return {self: waiting + sum(sum(engine.tokens_ahead.values()) for engine in self.engines[self.width])}

    @property
    def seconds(self) -> dict[str, float]:
        """Of all devices together, as a share of theirs."""
        total = dict.fromkeys(STATES, 0.0)
        for width, each in self.engines.items():
            for engine in each:
                for state in ("decode", "prefill"):
                    total[state] += engine.seconds[state] * width / self.instance.devices
        return total

    def submit(self, job: Job, _rank: Any = None) -> None:
        """Raises a ValueError for a request that no width holds."""
        request = job.request
        if scheduling.narrowest_fit(_seen(request), self.budgets) is None:
            lengths = f"{request.input_tokens} + {request.output_tokens} tokens"
            widest = max(self.budgets.values())
            raise ValueError(f"request {request.number} has {lengths}, and the widest group holds {widest}")
        self.open += 1
        self.lobby.append(job)
        self._dispatch()
        if self.wake is not None:
            self.wake.succeed()
            self.wake = None

    # ---------------------------------------------------------------- the policy and its switches

    @property
    def budgets(self) -> dict[int, int]:
        """Tokens that one group holds, by width."""
        pools = {width: each[0].ranks[0].pool for width, each in self.engines.items()}
        return {width: pool.total * pool.block_size for width, pool in pools.items()}

    def run(self) -> Generator[simpy.Event, Any, None]:
        while True:
            if not self.open:
                self.wake = self.env.event()
                yield self.wake
            decision = self.policy.decide(self._snapshot())
            for rank in self._ranks():
                rank.admits = decision.admits
            if decision.width != self.width:
                yield from self._switch(decision.width, decision.reason)
            for engine in self.engines[self.width]:
                engine.poke()
            yield self.env.timeout(self.how.interval_s)

    def _snapshot(self) -> scheduling.Snapshot:
        waiting = [_seen(job.request) for job in self.lobby]
        running = []
        for rank in self._ranks():
            waiting += [_seen(job.request) for job in rank.waiting]
            running += [_seen(job.request, not job.is_decoding) for job in rank.running]
        return scheduling.Snapshot(self.env.now, self.width, self.budgets, waiting, running)

    def _switch(self, width: int, reason: str) -> Generator[simpy.Event, Any, None]:
        """Steps end, weights and KV move, requests go on in the groups of the other width."""
        self.is_switching = True
        old = self.engines[self.width]
        yield self.env.all_of([engine.halt() for engine in old])
        held = 0
        back: list[Job] = []
        for engine in old:
            jobs, tokens = engine.release(self.how.moves)
            back += jobs
            held += tokens
        seconds = self.how.switch_s
        if self.how.moves:
            link = self.instance.link or Link(gb_per_s=1.0)
            shape = old[0].step_time.shape
            seconds += link.seconds(held * shape.kv_bytes_per_token / self.instance.devices)
        yield self.env.timeout(seconds)
        self.width = width
        self.switches.append((self.env.now, width, reason))
        for engine in self.engines[width]:
            engine.extra = self.how.first_step_s
            for rank in engine.ranks:
                rank.admits = True
        self.lobby.extendleft(reversed(back))
        self.is_switching = False
        self._dispatch()

    def _dispatch(self) -> None:
        """To the group with the fewest tokens ahead, in the order of arrival; what needs a wider one stays."""
        if self.is_switching:
            return
        engines = self.engines[self.width]
        budget = self.budgets[self.width]
        staying: deque[Job] = deque()
        for job in self.lobby:
            if _seen(job.request).tokens > budget:
                staying.append(job)
                continue
            loads = [sum(engine.tokens_ahead.values()) for engine in engines]
            engine = engines[scheduling.least_loaded(loads)]
            engine.submit(job, engine.ranks[0])
        self.lobby = staying

    def _ranks(self) -> list[Rank]:
        return [rank for engine in self.engines[self.width] for rank in engine.ranks]

    def _ended(self, _engine: Engine, job: Job) -> None:
        self.open -= 1
        self.on_end(self, job)


def _seen(request: Request, is_prefilling: bool = False) -> scheduling.Request:
    """What a policy knows of a request."""
    return scheduling.Request(request.input_tokens, request.output_tokens, is_prefilling=is_prefilling)
