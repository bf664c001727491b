"""`ParallelSwitcher`: one model that runs alone or as a part of a group of processes, with no weight being moved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from .. import compat
from .groups import Group, build_groups, require_processes, widths_of
from .plans import make_plan
from .views import Seat, build


class ParallelSwitcher:
    """
    Changes the parallel width of a model that every process holds whole.

    At width 1 processes are replicas and know nothing of one another. At width `w`, groups of `w` neighbouring ranks
    run one model in tensor parallelism: each process uses its slice of every sharded matrix, as a view of the tensor
    that is there. All views, forwards and process groups are built here, so that a switch is an exchange of
    references. Merged processes must make the same calls with the same inputs and without gradients, as `generate()`.

    Args:
        model (`PreTrainedModel`): the same weights in every process; patched or not.
        max_width (`int`): the widest group. Every divisor of it is a width too.
        timeout (`float`): seconds after which a collective with a missing process fails.

    Attributes:
        widths (`list[int]`): that can be had.
        groups (`dict[int, Group]`): of this process, for each width above 1.

    Raises:
        RuntimeError: if `torch.distributed` is not initialised.
        ValueError: if the model has no plan, too few KV heads or no whole weights, or processes do not divide.

    Source: arXiv 2602.22593, section 4.1 (weights as views).
    """

    def __init__(self, model: PreTrainedModel, max_width: int, timeout: float = 10.0):
        require_processes()
        if compat.is_sharded(model) or any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError(
                f"This {type(model).__name__} is sharded or without weights; every process must hold it whole. Load "
                "it with from_pretrained(...) and neither tp_plan= nor distributed_config=."
            )
        self.model = model
        self.plan = make_plan(model, max_width)
        self.widths = widths_of(max_width)
        self.groups = build_groups(max_width, model.device.type, timeout)
        self._overlays = {
            width: build(self.plan, self.seat(width), group.mesh) for width, group in self.groups.items()
        }
        self.width = 1

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, width={self.width} of {self.widths})"

    @property
    def group(self) -> Group | None:
        """The group that this process runs in now; None at width 1."""
        return self.groups.get(self.width)

    def seat(self, width: int) -> Seat:
        """This process's part at a width."""
        return Seat(dist.get_rank() % width, width, tuple(self.plan.heads(width)))

    def flip(self, width: int) -> None:
        """
        Exchanges views for views, in this process alone: no collective, and nothing is checked with the others.

        Raises:
            ValueError: for a width that cannot be had.
            RuntimeError: if weights were replaced since the views were built. The width stays then.
        """
        if width not in self.widths:
            raise ValueError(f"width={width} cannot be had: use one of {self.widths}.")
        before = self._overlays.get(self.width)
        if width == self.width:
            return
        if before is not None:
            before.take_off()
        try:
            if width > 1:
                self._overlays[width].put_on()
        except RuntimeError:
            if before is not None:
                before.put_on()
            raise
        self.width = width

    def merge(self, width: int | None = None) -> None:
        """
        Joins groups of `width` processes, the widest by default; all processes of a widest group must call this. The
        state of torch's random numbers becomes that of a group's first process, so that all of it samples alike.

        Raises:
            ValueError: if processes ask for different widths, or for one that cannot be had.
            RuntimeError: if one of them does not come within the time-out.
        """
        width = self.widths[-1] if width is None else width
        if width == 1 or width not in self.widths:
            return self.flip(width)
        everybody = self.groups[self.widths[-1]]
        asked: list[int | None] = [None] * len(everybody.ranks)
        dist.all_gather_object(asked, width, group=everybody.control)
        if set(asked) != {width}:
            raise ValueError(f"Processes {everybody.ranks} ask for widths {asked}. All must ask for the same.")
        self.flip(width)
        share_random_state(self.groups[width], self.model.device)

    def split(self) -> None:
        """Back to width 1, without a collective. Each process continues with random numbers of its own."""
        if self.width > 1:
            self.flip(1)
            part_random_state()

    @contextmanager
    def at(self, width: int) -> Iterator["ParallelSwitcher"]:
        """A width for the length of a `with` block, and the width before it afterwards, exceptions included."""
        before = self.width
        self.merge(width) if width > 1 else self.split()
        try:
            yield self
        finally:
            self.flip(before) if before > 1 else self.split()


def part_random_state() -> None:
    """Gives processes that were one random states of their own."""
    torch.manual_seed(int(torch.randint(2**31, (), device="cpu")) + dist.get_rank())


def share_random_state(group: Group, device: torch.device) -> None:
    """Gives all processes of a group the random state of its first one, on the CPU and on a model's CUDA device."""
    is_cuda = device.type == "cuda"
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if is_cuda else [])]
    for state in states:
        dist.broadcast(state, group.ranks[0], group=group.control)
    torch.set_rng_state(states[0])
    if is_cuda:
        torch.cuda.set_rng_state(states[1], device)
