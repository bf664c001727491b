"""S2O as it is measured, the dense attention it is measured against, and the distance between two results."""

from typing import Any

import torch
import torch.nn.functional as F

from hf_infeco import S2OConfig
from hf_infeco.kernels.dispatch import choose
from hf_infeco.kernels.jit import map_on_threads
from hf_infeco.kernels.s2o.reference import frame_of
from hf_infeco.prefill import causal_attention
from hf_infeco.s2o.operation import SparsePrefill

from .inputs import Heads

DEFAULT_TAU = S2OConfig().tau


def sparse(heads: Heads, tau: float = DEFAULT_TAU, **settings: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """S2O at any length, its density, and the missed mass by its own estimate."""
    out, stats = causal_attention(*heads, SparsePrefill(S2OConfig(tau=tau, crossover=0, **settings)))
    return out, {"density": float(stats.density), "missed": float(stats.missed)}


def truly_missed(heads: Heads, tau: float = DEFAULT_TAU, **settings: Any) -> float:
    """
    Softmax mass that S2O does not visit, mean over rows, up to as many segments as `head_dim`.

    With values that tell a row its own segment's keys, which it always visits, dense attention returns their share of
    all mass, and S2O without compensation their share of the visited mass.
    """
    config = S2OConfig(tau=tau, crossover=0, compensate=False, **settings)
    segment = torch.arange(heads.key.shape[2], device=heads.key.device) // config.segment
    own = F.one_hot(segment, heads.key.shape[3]).to(heads.key.dtype).expand(*heads.key.shape[:2], -1, -1)
    told = Heads(heads.query, heads.key, own)
    shares = [
        out.gather(3, segment.view(1, 1, -1, 1).expand(1, out.shape[1], -1, 1)).float()
        for out in (dense(told), causal_attention(*told, SparsePrefill(config))[0])
    ]
    return float(1 - (shares[0] / shares[1]).mean())


def cut(heads: Heads) -> None:
    """What S2O does before it attends: order the past and sum it up."""
    config, query = S2OConfig(), heads.query[0].unflatten(0, (heads.key.shape[1], -1))
    cut_into_granules = choose("s2o_prefill", heads.key.device).module.cut_into_granules

    def of_some(some: slice) -> None:
        frame = frame_of(query[some], heads.key[0, some]).keys
        cut_into_granules(heads.key[0, some], heads.value[0, some], frame, config.segment, config.granule)

    if heads.key.is_cuda:
        of_some(slice(None))
    else:  # as the CPU kernel does: a KV head each
        map_on_threads(of_some, [slice(h, h + 1) for h in range(len(query))])


def dense(heads: Heads) -> torch.Tensor:
    """Causal attention by the kernel that torch chooses."""
    query, key, value = heads
    if query.is_cuda and query.dtype == torch.float32:
        # The one float32 kernel on CUDA that writes no N x N matrix takes no grouped KV heads.
        ratio = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(ratio, 1), value.repeat_interleave(ratio, 1)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def distance(out: torch.Tensor, reference: torch.Tensor) -> dict[str, Any]:
    """Mean squared and relative L2 error of `[1, H, N, D]`, of all heads together and of the worst by itself."""
    difference = (out.float() - reference).flatten(2)[0]  # [H, N * D]
    each = difference.norm(dim=1) / reference.flatten(2)[0].norm(dim=1)
    return {
        "error": float(difference.norm() / reference.norm()),
        "worst_head": float(each.amax()),
        "mse": float(difference.square().mean()),
        "mse_per_head": difference.square().mean(dim=1).tolist(),
    }
