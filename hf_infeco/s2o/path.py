"""Dense or sparse: what a prefill does, and why. Attention asks before it runs, and the report says the same."""

from collections.abc import Callable
from typing import Literal

import torch

from ..kernels.dispatch import choose
from .config import AUTO, S2OConfig
from .crossover import SHORTEST, Crossover, Heads

# On a GPU the products are those of its matrix units, and the tiles must fit into its registers.
GPU_DTYPES = (torch.bfloat16, torch.float16)
GPU_HEAD_DIM = 256


def choose_path(
    config: S2OConfig, heads: Heads, q_len: int, kv_len: int, measured: Callable[[], Crossover | None]
) -> tuple[Literal["dense", "sparse"], str]:
    """
    What runs for `q_len` queries, the last of `kv_len` keys, and why, as a clause without full stop.

    Args:
        measured: what is known of the times of either way; asked only if the answer hangs on it. None counts as
            sparse: whoever goes there has not measured yet.
    """
    if config.tau == 0:
        return "dense", "tau=0 visits everything"
    if reason := _gpu_refusal(heads):
        return "dense", reason
    if q_len < config.segment:
        # Cutting the past would cost as much as attending it.
        return "dense", f"{q_len:,} queries are fewer than a segment of {config.segment}"
    if config.crossover != AUTO:
        path: Literal["dense", "sparse"] = "dense" if kv_len < int(config.crossover) else "sparse"
        return path, f"from {config.crossover} tokens on"
    if kv_len < SHORTEST:
        return "dense", f"{kv_len:,} keys are too few to ask"
    if choose("s2o_prefill", heads.device).backend == "reference":
        return "dense", f"there is no fast kernel for {heads.device.type} here"
    found = measured()
    if found is None:
        return "sparse", "where it is measured to be faster"
    if kv_len < found.keys:
        return "dense", f"sparse prefill was {found.summary()}"
    return "sparse", f"from {found.keys:,} tokens on, {found.summary()}"


def _gpu_refusal(heads: Heads) -> str | None:
    """Why the kernel for GPUs cannot take these heads; None if it can."""
    if heads.device.type != "cuda":
        return None
    if heads.dtype not in GPU_DTYPES:
        return f"on a GPU it attends in float16 or bfloat16, and the model is in {heads.dtype}"
    if max(heads.dims) > GPU_HEAD_DIM:
        return f"on a GPU it takes head_dim up to {GPU_HEAD_DIM}, and this is {max(heads.dims)}"
    return None
