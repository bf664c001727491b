"""The process groups of every width, built once, by every process and in the same order."""

import functools
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Group:
    """
    Processes that run as one at a width.

    Attributes:
        ranks (`tuple[int, ...]`): in the world; the first one drives.
        data: the group of the model's collectives, on the model's device.
        loop: of gloo; the engine's loop agrees on it what the next step does.
        control: of gloo; whoever switches talks on it while the loop runs.
    """

    ranks: tuple[int, ...]
    data: Any
    loop: Any
    control: Any
    mesh: DeviceMesh


def require_processes() -> None:
    """
    Raises:
        RuntimeError: if `torch.distributed` is not initialised.
    """
    if not dist.is_initialized():
        raise RuntimeError(
            "hf_infeco.flying needs processes that know one another. Start them with torchrun and call "
            "torch.distributed.init_process_group() first, even for a single one."
        )


def widths_of(max_width: int) -> list[int]:
    """1 and every divisor of `max_width`."""
    return [width for width in range(1, max_width + 1) if max_width % width == 0]


def build_groups(max_width: int, device_type: str, timeout: float) -> dict[int, Group]:
    """
    For every width above 1 the group that this process is in. Collective over the world; asked again, with the same
    arguments, the same groups.

    Raises:
        ValueError: if the processes do not divide into groups of `max_width`.
    """
    world = dist.get_world_size()
    if max_width < 1 or world % max_width:
        raise ValueError(
            f"max_width={max_width} must divide the {world} processes. Start a multiple of it, as with "
            f"`torchrun --nproc-per-node {max(max_width, 1)}`."
        )
    return _build(dist.group.WORLD, max_width, device_type, timeout)


@functools.lru_cache(maxsize=8)  # a group holds sockets and threads, and models may come and go
def _build(world: Any, max_width: int, device_type: str, timeout: float) -> dict[int, Group]:
    limit, rank, mine = timedelta(seconds=timeout), dist.get_rank(), {}
    for width in widths_of(max_width)[1:]:
        for first in range(0, world.size(), width):
            ranks = list(range(first, first + width))
            data = dist.new_group(ranks, timeout=limit)
            loop, control = (dist.new_group(ranks, backend="gloo", timeout=limit) for _ in range(2))
            if rank in ranks:
                mesh = DeviceMesh.from_group(data, device_type)
                mine[width] = Group(tuple(ranks), data, loop, control, mesh)
    return mine
