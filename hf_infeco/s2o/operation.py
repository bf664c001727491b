"""Sparse prefill as one operation of torch, which `torch.compile` sees whole, whatever backend runs in it."""

from dataclasses import dataclass, replace
from functools import partial

import torch

from ..kernels.dispatch import choose
from ..kernels.pairs import PairStats
from ..prefill import dense
from .config import AUTO, S2OConfig
from .crossover import Heads, measured_crossover
from .path import choose_path


@dataclass(frozen=True)
class SparsePrefill:
    """Causal attention by S2O, dense where `choose_path` says so; no gradients. A `prefill.Prefill`."""

    config: S2OConfig

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        sinks: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, PairStats]:
        # An operation costs a fifth of a millisecond to call, which short prompts would notice.
        if type(query) is torch.Tensor and not query.is_meta and not torch.compiler.is_compiling():
            with torch.no_grad():
                return _prefill(query, key, value, sinks, scale, self.config)
        crossover = -1 if self.config.crossover == AUTO else int(self.config.crossover)
        settings = (*self.config.kernel_settings, crossover)
        with torch.no_grad():
            out, visited, missed = _operation(query, key, value, sinks, scale, *settings)
        return out, replace(PairStats.dense(query, key), visited_pairs=visited, missed_mass=missed)


def _prefill(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    scale: float,
    config: S2OConfig,
) -> tuple[torch.Tensor, PairStats]:
    measured = partial(measured_crossover, query, key, value, sinks, config)
    path, _ = choose_path(config, Heads.of(query, key, value, sinks), query.shape[2], key.shape[2], measured)
    if path == "dense":
        return dense(query, key, value, scale, sinks)
    run = choose("s2o_prefill", query.device).module.s2o_prefill
    return run(query, key, value, scale=scale, sinks=sinks, settings=config.kernel_settings)


@torch.library.custom_op("hf_infeco::s2o_prefill", mutates_args=())
def _operation(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    scale: float,
    tau: float,
    target_mass: float | None,
    segment: int,
    granule: int,
    compensate: bool,
    crossover: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Returns out `[B, H, q_len, Dv]`, and as tensors without dimensions on the same device: (query, key) pairs visited
    (int64), and missed mass, summed over rows (float64).
    """
    config = S2OConfig(
        tau=tau,
        target_mass=target_mass,
        segment=segment,
        granule=granule,
        compensate=compensate,
        crossover=AUTO if crossover < 0 else crossover,
    )
    out, stats = _prefill(query, key, value, sinks, scale, config)
    visited = _number(stats.visited_pairs, torch.int64, query.device)
    return out, visited, _number(stats.missed_mass, torch.float64, query.device)


def _number(value: float | torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return value.to(dtype) if isinstance(value, torch.Tensor) else torch.full((), value, dtype=dtype, device=device)


@_operation.register_fake
def _(query, key, value, sinks, *settings):
    out = query.new_empty(*query.shape[:3], value.shape[3])
    return out, query.new_empty((), dtype=torch.int64), query.new_empty((), dtype=torch.float64)
