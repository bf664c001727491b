"""
From how many keys on sparse prefill is faster than dense: a model of both times, measured once in a while.

Of n keys, either way takes about a n + b n^2 seconds: what is done once per key, and once per pair. Measured at a few
lengths, on the heads of the prompt at hand, a and b tell from which length on sparse is faster, also where that lies
beyond what was measured.
"""

import datetime
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub.constants import HF_HOME
from transformers.utils import logging

from ..dense import dense_attention
from ..kernels.devices import describe_device
from ..kernels.dispatch import choose
from .config import S2OConfig

logger = logging.get_logger(__name__)

VARIABLE = "HF_INFECO_CACHE"  # folder of the file, instead of hf_infeco/ in Hugging Face's own
SHORTEST = 1024  # keys below which nobody asks
LENGTHS = (2048, 4096, 8192)
REPEATS = 2  # of which the faster one counts: whatever else the machine does only adds to a time
GAIN = 0.9  # of the dense time: what sparse prefill must stay below, or it is not worth what it leaves out
EXPIRY = datetime.timedelta(days=28)
NEVER = 2**62


@dataclass(frozen=True)
class Heads:
    """
    Attention heads, as far as times depend on them.

    Attributes:
        device, dtype: of queries, keys and values.
        count (`tuple[int, int]`): query heads and KV heads.
        dims (`tuple[int, int]`): head_dim of keys and of values.
        has_sinks (`bool`): whether there are learned sinks.
    """

    device: torch.device
    dtype: torch.dtype
    count: tuple[int, int]
    dims: tuple[int, int]
    has_sinks: bool = False

    @classmethod
    def of(
        cls, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor | None = None
    ) -> Self:
        count, dims = (query.shape[1], key.shape[1]), (query.shape[3], value.shape[3])
        return cls(query.device, query.dtype, count, dims, sinks is not None)


@dataclass(frozen=True)
class Crossover:
    """
    What was measured for one device and shape of heads.

    Attributes:
        date (`str`): of the measurement, as in 2026-11-25.
        lengths (`list[int]`): keys.
        sparse, dense (`list[float]`): seconds at each length.
    """

    date: str
    lengths: list[int]
    sparse: list[float]
    dense: list[float]

    @cached_property
    def keys(self) -> int:
        """Least number of keys from which on sparse prefill takes less than `GAIN` of the dense time; or `NEVER`."""
        (once, per_pair), (dense_once, dense_per_pair) = fit(self.lengths, self.sparse), fit(self.lengths, self.dense)
        lost, gained = once - GAIN * dense_once, GAIN * dense_per_pair - per_pair
        if gained <= 0:
            return NEVER
        return max(SHORTEST, math.ceil(lost / gained))

    def summary(self) -> str:
        """For a report, without full stop: `"measured slower than dense below 9,300 keys (0.61x at 4,096; ...)"`."""
        ratios = ", ".join(
            f"{dense / sparse:.2f}x at {length:,}"
            for length, sparse, dense in zip(self.lengths, self.sparse, self.dense, strict=True)
        )
        where = "at any length" if self.keys == NEVER else f"below {self.keys:,} keys"
        return f"measured slower than dense {where} ({ratios}; {self.date})"

    @property
    def is_fresh(self) -> bool:
        return datetime.date.today() - datetime.date.fromisoformat(self.date) < EXPIRY


_known: dict[str, Crossover] = {}


def measured_crossover(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    config: S2OConfig,
) -> Crossover:
    """
    What S2O with these settings takes beside dense attention, on heads like these.

    The first call for a device and a shape of heads compiles the kernels and measures, which takes some seconds and is
    logged; the answer is kept for four weeks in `crossover.json`, in the folder that `HF_INFECO_CACHE` names.
    """
    heads = Heads.of(query, key, value, sinks)
    found = known(config, heads)
    if found is None:
        found = _measure(query, key, value, sinks, config)
        name = _name(config, heads)
        _known[name] = found
        _write({**_read(), name: found})
    return found


def known(config: S2OConfig, heads: Heads) -> Crossover | None:
    """What was measured for such heads, or None where nothing was or it has expired."""
    name = _name(config, heads)
    if name not in _known:
        _known.update(_read())
    found = _known.get(name)
    return found if found is not None and found.is_fresh else None


def fit(lengths: list[int], seconds: list[float]) -> tuple[float, float]:
    """a, b >= 0 of a n + b n^2 with the least squared relative errors."""
    n, t = (torch.tensor(numbers, dtype=torch.float64, device="cpu") for numbers in (lengths, seconds))
    terms = torch.stack([n / t, n * n / t], 1)
    a, b = torch.linalg.lstsq(terms, torch.ones_like(t)[:, None]).solution.flatten().tolist()
    if a < 0:
        return 0.0, float(terms[:, 1].sum() / terms[:, 1].square().sum())
    if b < 0:
        return float(terms[:, 0].sum() / terms[:, 0].square().sum()), 0.0
    return a, b


def _name(config: S2OConfig, heads: Heads) -> str:
    """What the answer depends on."""
    (query_heads, kv_heads), (key_dim, value_dim) = heads.count, heads.dims
    shape = f"{query_heads}/{kv_heads} heads of {key_dim} and {value_dim}{' with sinks' if heads.has_sinks else ''}"
    chosen = ", ".join(f"{field}={setting}" for field, setting in config.kernel_settings._asdict().items())
    backend = choose("s2o_prefill", heads.device).backend
    return f"{describe_device(heads.device)}; {backend}, torch {torch.__version__}; {heads.dtype}, {shape}; {chosen}"


def _measure(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor | None, config: S2OConfig
) -> Crossover:
    logger.warning(
        f"S2O compiles its kernels for {describe_device(query.device)} and measures from how many keys on it is "
        "faster there than dense attention, which takes some seconds. hf_infeco.warm_up(model) does so ahead."
    )
    sparse: Callable = choose("s2o_prefill", query.device).module.s2o_prefill
    seconds: dict[Callable, list[float]] = {sparse: [], dense_attention: []}
    for length in LENGTHS:
        heads = _of_length(query, length), _of_length(key, length), _of_length(value, length)
        common: dict[str, Any] = {"scale": query.shape[3] ** -0.5, "sinks": sinks}
        runs = {sparse: partial(sparse, *heads, **common, settings=config.kernel_settings)}
        runs[dense_attention] = partial(dense_attention, *heads, **common)
        if length == LENGTHS[0]:
            for run in runs.values():  # compiles
                run()
        taken = [{method: _seconds(run, query.device) for method, run in runs.items()} for _ in range(REPEATS)]
        for method in seconds:
            seconds[method].append(min(times[method] for times in taken))
    today = datetime.date.today().isoformat()
    found = Crossover(today, list(LENGTHS), seconds[sparse], seconds[dense_attention])
    logger.info(f"S2O was {found.summary()}.")
    return found


def _of_length(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """One row's last positions, repeated where there are too few: what a head attends to stays like itself."""
    times = -(-length // tensor.shape[2])
    return tensor[:1].repeat(1, 1, times, 1)[:, :, -length:].contiguous()


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def _path() -> Path:
    return Path(os.environ.get(VARIABLE) or Path(HF_HOME) / "hf_infeco") / "crossover.json"


def _read() -> dict[str, Crossover]:
    """What is on file and fresh. What is missing, was cut off in writing, or has an older format is measured anew."""
    try:
        found = {name: Crossover(**entry) for name, entry in json.loads(_path().read_text(encoding="utf-8")).items()}
        return {name: entry for name, entry in found.items() if entry.is_fresh}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(known: dict[str, Crossover]) -> None:
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        text = json.dumps({name: asdict(entry) for name, entry in known.items()}, indent=1)
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        logger.warning_once(f"S2O's crossover could not be kept in {path} ({error}): every process measures it anew.")
