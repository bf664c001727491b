"""The slice of each parameter that a process uses at a width: views of the resident tensors, no copies."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from transformers.utils import logging

from .. import compat
from ..edits import Overlay
from .plans import EXPERTS, GATHERED, PACKED, Part, Plan

logger = logging.get_logger(__name__)

# Experts whose packed gate and up projections run as two views by `packed_experts`; their forwards are equal to it.
TWO_VIEWS = {"MixtralExperts", "Qwen3MoeExperts"}


class Seat(NamedTuple):
    """
    Which part a process has at a width.

    Attributes:
        rank, width (`int`): within the group.
        heads (`tuple[int, ...]`): KV heads of each process of the group.
    """

    rank: int
    width: int
    heads: tuple[int, ...]

    def bounds(self, size: int, part: Part, style: str) -> tuple[int, int]:
        """First and last + 1 feature of `size` that are this process's."""
        if style in GATHERED:  # as DTensor cuts them, which puts them together again
            chunk = -(-size // self.width)
            return min(size, self.rank * chunk), min(size, (self.rank + 1) * chunk)
        if not part.in_attention:
            return size * self.rank // self.width, size * (self.rank + 1) // self.width
        total = sum(self.heads)
        if size % total:
            raise ValueError(f"{part.name} has {size} features, which {total} KV heads do not divide.")
        first = sum(self.heads[: self.rank])
        return first * size // total, (first + self.heads[self.rank]) * size // total


def view(part: Part, name: str, seat: Seat) -> torch.Tensor:
    """The slice of one parameter. Shares its storage, unless it is `once` or a stated copy of packed experts."""
    style, full = part.parameters[name], part.module.get_parameter(name).data
    if style == "once":  # a bias behind a sum over processes, which only one may add
        return full if seat.rank == 0 else torch.zeros_like(full)
    if style == PACKED:
        return _packed(part, full, seat)
    if style.startswith("rowwise"):
        if name == "bias":  # added after the sum
            return full
        return full.narrow(-1, *_span(seat.bounds(full.shape[-1], part, style)))
    if style == "interleaved_colwise":  # gate, up, gate, up, ...: whole pairs
        first, last = seat.bounds(full.shape[-1] // 2, part, style)
        return full.narrow(-1, *_span((2 * first, 2 * last)))
    dimension = max(full.ndim - 2, 0)  # of features that come out; a parameter of one dimension is a bias
    return full.narrow(dimension, *_span(seat.bounds(full.shape[dimension], part, style)))


def _span(bounds: tuple[int, int]) -> tuple[int, int]:
    return bounds[0], bounds[1] - bounds[0]


def _packed(part: Part, full: torch.Tensor, seat: Seat) -> torch.Tensor:
    """Of gate over up `[E, 2 I, H]`: the two slices as one view `[E, 2, I', H]`, or a copy `[E, 2 I', H]`."""
    experts, both, hidden = full.shape
    pair = full.view(experts, 2, both // 2, hidden).narrow(2, *_span(seat.bounds(both // 2, part, PACKED)))
    if type(part.module).__name__ in TWO_VIEWS:
        return pair
    copied = pair.reshape(experts, -1, hidden)
    logger.warning(
        f"{part.name}: gate and up projections are packed, so that this process's half of them, "
        f"{copied.nbytes / 2**20:.1f} MiB, is a copy and no view."
    )
    return copied


def packed_experts(
    module: Any,
    group: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """
    A mixture's experts on this process's slice of each, summed over the group.

    Args:
        module (`nn.Module`): with `gate_up_proj [E, 2, I', H]`, `down_proj [E, H, I']` and `act_fn`.
        hidden_states (`torch.Tensor` `[T, H]`), top_k_index, top_k_weights (`[T, K]`): tokens, and each one's experts.
    """
    out = torch.zeros_like(hidden_states)
    for expert in top_k_index.unique().tolist():
        if expert >= module.gate_up_proj.shape[0]:  # marks a place without an expert
            continue
        token, place = torch.where(top_k_index == expert)
        chosen = hidden_states[token]
        gate, up = (nn.functional.linear(chosen, weight) for weight in module.gate_up_proj[expert])
        down = nn.functional.linear(module.act_fn(gate) * up, module.down_proj[expert])
        out.index_add_(0, token, (down * top_k_weights[token, place, None]).to(out.dtype))
    dist.all_reduce(out, group=group)
    return out


def build(plan: Plan, seat: Seat, mesh: Any) -> Overlay:
    """Everything that makes a model run at a width, ready to be put on and taken off."""
    overlay, styles = Overlay(), compat.parallel_styles()
    for part in plan.parts:
        views = {name: nn.Parameter(view(part, name, seat), requires_grad=False) for name in part.parameters}
        overlay.add(part.module, views, _install(part, styles, mesh))
    return overlay


def _install(part: Part, styles: Any, mesh: Any) -> Callable[[nn.Module], Any] | None:
    if part.style is None:
        return None
    if part.style == EXPERTS and PACKED in part.parameters.values() and type(part.module).__name__ in TWO_VIEWS:
        forward = partial(packed_experts, part.module, mesh.get_group())
        return lambda module: vars(module).update(forward=forward)
    return lambda module: styles[part.style].install_forward(module, mesh)
