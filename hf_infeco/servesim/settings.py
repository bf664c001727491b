"""What a cluster is: the settings of a simulation, as plain dataclasses. `files.py` reads them from YAML."""

from dataclasses import dataclass, field

# What vLLM 0.19 captures CUDA graphs for; a step between two sizes is padded to the larger one.
GRAPH_SIZES = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))

FORBID = {"extra": "forbid"}  # read by pydantic when a file is checked against a dataclass


@dataclass(frozen=True)
class Scheduler:
    """
    How an instance batches; the names are vLLM's.

    Args:
        max_num_seqs: requests that run at once.
        max_num_batched_tokens: tokens of a step, prompts' chunks and one for each that decodes.
        block_size: tokens of a KV block.
        async_scheduling: a step is composed while the one before runs, so an arrival waits one step more.
        chunked_prefill: a prompt may be split over steps.
        prefix_caching: blocks of equal prompts are shared.
        graph_sizes: token counts that a step is padded to; empty without CUDA graphs.
    """

    __pydantic_config__ = FORBID

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    async_scheduling: bool = True
    chunked_prefill: bool = True
    prefix_caching: bool = True
    graph_sizes: tuple[int, ...] = GRAPH_SIZES


@dataclass(frozen=True)
class Link:
    """
    A connection between devices.

    Args:
        gb_per_s: one way, 1e9 bytes.
        latency_us: of a message.
        factor: of the time that bandwidth and latency give; measured or fitted.
    """

    __pydantic_config__ = FORBID

    gb_per_s: float
    latency_us: float = 0.0
    factor: float = 1.0

    def seconds(self, volume: float, messages: int = 1) -> float:
        """For `volume` bytes that follow each other in `messages` messages."""
        return self.factor * (volume / (1e9 * self.gb_per_s) + 1e-6 * self.latency_us * messages)


@dataclass(frozen=True)
class Power:
    """Watts of one device by what its instance does: nothing, decode alone, or a step with a prompt in it."""

    __pydantic_config__ = FORBID

    idle: float
    decode: float
    prefill: float


@dataclass(frozen=True)
class Correction:
    """
    What calibration changes about a profile. The defaults change nothing.

    Args:
        prefill: factor of the time of steps that hold a prompt's chunk.
        decode: factor of the time of the others.
        gap_us: of the host, once a step.
        link: factor of the time on links.
        partial: what a step takes longer where half the seats decode; nothing where none or all do.
    """

    prefill: float = 1.0
    decode: float = 1.0
    gap_us: float = 0.0
    link: float = 1.0
    partial: float = 0.0


@dataclass(frozen=True)
class Switching:
    """
    A width that changes while requests run. The devices of the instance, `tp` at first, form groups of that width.

    Args:
        widths: that can be had; the profile needs their tables.
        policy: of `hf_infeco.scheduling`: sequential, soft, hard or auto.
        settings: of the policy.
        switch_s: seconds of a switch itself, KV aside.
        first_step_s: seconds that the first step at a width takes longer.
        moves: whether running requests' KV is moved over the link; else it is computed anew.
        interval_s: between two looks of the policy.
    """

    __pydantic_config__ = FORBID

    widths: tuple[int, ...]
    policy: str = "auto"
    settings: dict[str, float] = field(default_factory=dict)
    switch_s: float = 0.0
    first_step_s: float = 0.0
    moves: bool = True
    interval_s: float = 0.05


@dataclass(frozen=True)
class Instance:
    """
    One serving engine, or `count` equal ones.

    Args:
        model: a `config.json`, or a folder that has one.
        profile: a folder of tables for one device and model.
        count: how many of them.
        tp: devices that share a layer.
        pp: stages that layers are split over.
        dp: ranks that step together, each with its own requests (data parallel attention of a mixture of experts).
        ep: devices that experts are split over; `tp * dp` where there are experts and nothing else is said.
        memory_gb: of one device, 1e9 bytes. Read where `kv_blocks` is not given.
        utilization: share of the memory for weights and KV blocks.
        kv_blocks: of each rank, as the engine logs it.
        role: `both`, `prefill` or `decode`.
        handover_s: seconds that a step takes longer for each request whose KV leaves a prefill instance with it, or
            has come to a decode instance for it.
        link: between devices of the instance; needed where there is more than one.
        scheduler: how it batches.
        power: watts of one device, for the energy.
        dollars_per_hour: of one device.
        switching: whether the `tp * dp` devices of each one change their width as they serve, and how; `dp` is then
            how many groups there are at first, and they do not step together. Not with stages.
    """

    __pydantic_config__ = FORBID

    model: str
    profile: str
    count: int = 1
    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int | None = None
    memory_gb: float | None = None
    utilization: float = 0.9
    kv_blocks: int | None = None
    role: str = "both"
    handover_s: float = 0.0
    link: Link | None = None
    scheduler: Scheduler = field(default_factory=Scheduler)
    power: Power | None = None
    dollars_per_hour: float | None = None
    switching: Switching | None = None

    @property
    def devices(self) -> int:
        return self.tp * self.pp * self.dp

    def expert_devices(self, experts: int) -> int:
        """Devices that a model's `experts` are split over; 1 where it has none."""
        return (self.ep or self.tp * self.dp) if experts else 1


@dataclass(frozen=True)
class Cluster:
    """
    Args:
        instances: those that serve.
        routing: who gets a request, see `routing.POLICIES`.
        transfer: the link that KV takes from prefill to decode instances.
    """

    __pydantic_config__ = FORBID

    instances: tuple[Instance, ...]
    routing: str = "least_requests"
    transfer: Link | None = None
