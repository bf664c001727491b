"""A trace on a cluster: arrivals, routing, KV on its way from prefill to decode instances, and what comes out."""

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import simpy

from .engine import Engine
from .files import read_cluster
from .pool import BlockPool
from .rank import Rank
from .requests import Job, Request
from .results import Results
from .routing import POLICIES, Target
from .settings import Cluster, Instance, Switching
from .shape import ModelShape
from .step import StepTime
from .tables import Tables, read_tables
from .traces import read_trace
from .width import Group

SPARE = 0.02  # of the memory beside weights: activations, graphs and the allocator's gaps


def simulate(
    cluster: "Cluster | str | Path",
    trace: "Iterable[Request] | str | Path",
    *,
    seed: int = 0,
    rows: str | Path | None = None,
    tables: Callable[[Instance, ModelShape], Tables] | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Results:
    """
    Serves a trace on a cluster in simulated time.

    Args:
        cluster: its description, or the YAML file that has it.
        trace: requests in the order of arrival, or a file of them (see `read_trace`).
        seed: of policies that throw dice. Equal seeds give equal bytes.
        rows: a CSV file for one row a request.
        tables: where an instance's tables come from, its `profile` by default.
        progress: called with the number of requests that are through, for each.

    Raises:
        ValueError: a description, table or trace that is not right, a model that does not fit, or a request that the
            instances cannot hold.
    """
    if not isinstance(cluster, Cluster):
        cluster = read_cluster(cluster)
    if isinstance(trace, str | Path):
        trace = read_trace(trace)
    with Results(rows) as results:
        Simulation(cluster, seed, results, tables or tables_of_profiles(), progress).serve(trace)
    return results


class Simulation:
    """Engines, and the ways between them."""

    def __init__(
        self,
        cluster: Cluster,
        seed: int,
        results: Results,
        tables: Callable[[Instance, ModelShape], Tables],
        progress: Callable[[int], Any] | None,
    ):
        self.env = simpy.Environment()
        self.cluster, self.results, self.progress = cluster, results, progress
        self.engines = [engine for instance in cluster.instances for engine in self._engines(instance, tables)]
        roles = {role: self._targets(role) for role in ("both", "prefill", "decode")}
        if bool(roles["prefill"]) != bool(roles["decode"]):
            raise ValueError("an instance of role prefill needs one of role decode, and the other way round")
        if roles["prefill"] and cluster.transfer is None:
            raise ValueError("prefill and decode instances need `transfer`, the link that KV takes between them")
        if cluster.routing not in POLICIES:
            raise ValueError(f"routing {cluster.routing!r} is none of {', '.join(POLICIES)}")
        self.entry = [*roles["both"], *roles["prefill"]]
        self.decoders = roles["decode"]
        self.route, self.route_decode = POLICIES[cluster.routing](seed), POLICIES[cluster.routing](seed)
        self.open: dict[Job, Job] = {}  # a job of a decode instance: the one of the prefill instance before it
        self.under_way: dict[str, int] = defaultdict(int)  # requests of a session that are not through
        self.parked: dict[str, deque[Request]] = defaultdict(deque)

    def serve(self, trace: Iterable[Request]) -> None:
        self.env.process(self._arrivals(trace))
        self.env.run()
        for engine in self.engines:
            self.results.add_engine(engine, self.env.now)
        self.results.finish(self.env.now)

    # ---------------------------------------------------------------- arrivals

    def _arrivals(self, trace: Iterable[Request]) -> Generator[simpy.Event, Any, None]:
        before = 0.0
        for number, request in enumerate(trace):
            request.number = number
            if request.arrival < before:
                raise ValueError(f"request {number} arrives at {request.arrival} s, before the one in front of it")
            before = request.arrival
            if request.arrival > self.env.now:
                yield self.env.timeout(request.arrival - self.env.now)
            session = request.session
            if session is None or request.delay is None:
                self._enter(request)
            elif self.under_way[session]:
                self.parked[session].append(request)
                self.under_way[session] += 1
            else:
                self.under_way[session] = 1
                self._enter(request)

    def _enter(self, request: Request) -> None:
        engine, rank = self.route(request, self.entry)
        is_split = engine.instance.role == "prefill"
        engine.submit(Job(request, self.env.now, left=1 if is_split else None), rank)
        self.results.arrived(request)

    def _turn_ends(self, session: str) -> None:
        """The session's next request comes when its tool, or its person, is through."""
        self.under_way[session] -= 1
        if self.parked[session]:
            self.env.process(self._after(self.parked[session].popleft()))
        elif not self.under_way[session]:
            del self.under_way[session], self.parked[session]

    def _after(self, request: Request) -> Generator[simpy.Event, Any, None]:
        yield self.env.timeout(request.delay or 0.0)
        self._enter(request)

    # ---------------------------------------------------------------- ends

    def _ended(self, engine: Engine, job: Job) -> None:
        if engine.instance.role == "prefill":
            self.env.process(self._carry(engine, job))
            return
        self.results.ended(job, self.open.pop(job, None), self.engines.index(engine))
        if job.request.session is not None and job.request.delay is not None:
            self._turn_ends(job.request.session)
        if self.progress is not None:
            self.progress(self.results.count)

    def _carry(self, engine: Engine, job: Job) -> Generator[simpy.Event, Any, None]:
        """The prompt's KV goes to a decode instance, all devices of the narrower side at once."""
        target, rank = self.route_decode(job.request, self.decoders)
        lanes = min(engine.instance.tp, target.instance.tp)
        volume = job.request.input_tokens * engine.step_time.shape.kv_bytes_per_token / lanes
        yield self.env.timeout(self.cluster.transfer.seconds(volume) if self.cluster.transfer else 0.0)
        carried = Job(job.request, job.arrival)
        carried.is_carried = True
        self.open[carried] = job
        target.submit(carried, rank)

    # ---------------------------------------------------------------- construction

    def _targets(self, role: str) -> list[Target]:
        return [(engine, rank) for engine in self.engines if engine.instance.role == role for rank in engine.ranks]

    def _engines(self, instance: Instance, tables: Callable[[Instance, ModelShape], Tables]) -> list[Any]:
        if instance.role not in ("both", "prefill", "decode"):
            raise ValueError(f"role {instance.role!r} is none of both, prefill, decode")
        if instance.devices > 1 and instance.link is None:
            raise ValueError(f"an instance of {instance.devices} devices needs `link`, its measured or fitted values")
        shape = ModelShape.read(instance.model)
        if instance.switching is not None:
            return self._groups(instance, instance.switching, shape, tables)
        return self._equal(instance, shape, tables, instance.count)

    def _groups(
        self,
        instance: Instance,
        how: Switching,
        shape: ModelShape,
        tables: Callable[[Instance, ModelShape], Tables],
    ) -> list[Group]:
        """`count` of them, each with the engines that its devices would be at each width."""
        odd = [width for width in how.widths if instance.devices % width]
        if odd or instance.tp not in how.widths or instance.role != "both" or instance.pp > 1:
            raise ValueError(
                f"switching between widths {list(how.widths)} needs widths that divide {instance.devices} devices, "
                f"tp={instance.tp} among them, role both, and pp=1 (it is {instance.role} and pp={instance.pp})"
            )
        groups: list[dict[int, list[Engine]]] = [{} for _ in range(instance.count)]
        for width in how.widths:
            one = instance.kv_blocks and instance.kv_blocks * width // instance.tp
            each = replace(instance, tp=width, dp=1, kv_blocks=one, switching=None)
            engines = self._equal(each, shape, tables, instance.count * instance.devices // width)
            for place, group in enumerate(groups):
                group[width] = engines[place :: instance.count]
        return [Group(self.env, instance, how, group, self._ended) for group in groups]

    def _equal(
        self, instance: Instance, shape: ModelShape, tables: Callable[[Instance, ModelShape], Tables], count: int
    ) -> list[Engine]:
        """So many engines that share their tables."""
        step_time = StepTime(tables(instance, shape), shape, instance)
        self.results.formulas.append(step_time)
        blocks, settings = kv_blocks(instance, shape), instance.scheduler
        # Each batch in the stages' pipeline is a rank with its share of the seats and blocks.
        share = replace(settings, max_num_seqs=max(settings.max_num_seqs // instance.pp, 1))

        def ranks() -> list[Rank]:
            pool = lambda: BlockPool(blocks // instance.pp, settings.block_size, settings.prefix_caching)
            return [Rank(share, pool()) for _ in range(instance.dp * instance.pp)]

        return [Engine(self.env, ranks(), step_time, instance, self._ended) for _ in range(count)]


def kv_blocks(instance: Instance, shape: ModelShape) -> int:
    """
    KV blocks of one rank: as given, or what the memory has beside the weights.

    Raises:
        ValueError: the weights do not fit, or there is nothing to work it out from.
    """
    if instance.kv_blocks is not None:
        return instance.kv_blocks
    if instance.memory_gb is None:
        raise ValueError("an instance needs `kv_blocks`, as the engine logs them, or `memory_gb` to work them out")
    held = shape.device_weights(instance.tp, instance.pp, instance.expert_devices(shape.experts))
    weights = shape.value_bytes * held
    usable = 1e9 * instance.memory_gb * instance.utilization
    free = usable - weights - SPARE * 1e9 * instance.memory_gb
    per_token = shape.kv_bytes_per_token / (min(instance.tp, shape.kv_heads) * instance.pp)
    blocks = int(free // (per_token * instance.scheduler.block_size))
    if blocks < 1:
        raise ValueError(
            f"the model does not fit: {weights / 1e9:.1f} GB of weights on each of {instance.devices} devices, and "
            f"{usable / 1e9:.1f} of their {instance.memory_gb:g} GB are for weights and KV; use more or larger ones"
        )
    return blocks


def tables_of_profiles() -> Callable[[Instance, ModelShape], Tables]:
    """Reads the profile of an instance, once for all that share its tables."""
    read = cache(read_tables)
    return lambda instance, shape: read(instance.profile, instance.tp, shape.layers)
