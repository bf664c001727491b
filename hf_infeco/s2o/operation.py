"""Sparse prefill as one operation of torch, which `torch.compile` sees whole, whatever backend runs in it."""

import torch

from ..dense import dense_attention
from ..kernels.dispatch import choose
from ..kernels.s2o.reference import count_causal_pairs
from .config import AUTO, S2OConfig
from .crossover import measured_crossover


def prefill(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    scale: float,
    config: S2OConfig,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Causal attention by S2O, or dense below the crossover; no gradients. `sinks [H]` as in `s2o_attention`.

    Returns:
        out `[B, H, q_len, Dv]`, and as tensors without dimensions on the same device, so that nobody has to wait for
        them: (query, key) pairs visited (int64), and missed mass, summed over rows (float64).
    """
    crossover = -1 if config.crossover == AUTO else int(config.crossover)
    settings = (config.tau, config.target_mass, config.segment, config.granule, config.compensate, crossover)
    # An operation costs a fifth of a millisecond to call, which short prompts would notice.
    is_plain = type(query) is torch.Tensor and not query.is_meta and not torch.compiler.is_compiling()
    return (_prefill if is_plain else _operation)(query, key, value, sinks, scale, *settings)


def _prefill(
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
    settings = {"tau": tau, "target_mass": target_mass, "segment": segment, "granule": granule}
    run = choose("s2o_prefill", query.device).module.s2o_prefill
    if crossover < 0:
        crossover = measured_crossover(query, key, value, sinks, settings | {"compensate": compensate})
    if key.shape[2] < crossover:
        visited: int | torch.Tensor = query[:, :, 0, 0].numel() * count_causal_pairs(query.shape[2], key.shape[2])
        missed: float | torch.Tensor = 0.0
        out = dense_attention(query, key, value, scale, sinks)
    else:
        out, stats = run(query, key, value, scale=scale, compensate=compensate, sinks=sinks, **settings)
        visited, missed = stats.visited_pairs, stats.missed_mass
    return out, _number(visited, torch.int64, query.device), _number(missed, torch.float64, query.device)


def _number(value: float | torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return value.to(dtype) if isinstance(value, torch.Tensor) else torch.full((), value, dtype=dtype, device=device)


_operation = torch.library.custom_op("hf_infeco::s2o_prefill", _prefill, mutates_args=())


@_operation.register_fake
def _(query, key, value, sinks, *settings):
    out = query.new_empty(*query.shape[:3], value.shape[3])
    return out, query.new_empty((), dtype=torch.int64), query.new_empty((), dtype=torch.float64)
