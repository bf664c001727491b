"""`Kept`: which tokens a cache layer still holds after some were dropped, and what a mask of positions hides there."""

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Self

import torch


class Kept:
    """
    Where the tokens lie in a layer that some were dropped from. It is replaced and never changed, so layers share it.

    A slot is room for one token of each row. The first slots hold the positions named here; a slot behind them holds
    the next position, from `num_tokens` on, in every row.

    Args:
        position (`torch.Tensor` of int32, `[B, slots]`): what each of the first slots holds, rising in each row; -1 is
            nothing, a hole.
        num_tokens (`int`): positions that the layer had seen when these were all of its slots.

    Attributes:
        most (`int`): tokens in the row that holds the most of them, in these slots; no row holds more.
        is_full (`bool`): whether there is no hole.
        is_aligned (`bool`): whether there are no more slots than `most`, and holes only in front, like left padding.
    """

    def __init__(self, position: torch.Tensor, num_tokens: int):
        self.position, self.num_tokens = position, num_tokens
        is_alive = position >= 0
        counts = is_alive.sum(1).tolist()  # waits for the device: when tokens are dropped, not at every step
        self.most = max(counts)
        self.is_full = min(counts) == position.shape[1]
        self.is_aligned = self.most == position.shape[1] and bool((is_alive[:, 1:] >= is_alive[:, :-1]).all())

    def seen(self, slots: int) -> int:
        """Positions that a layer of so many slots has seen."""
        return self.num_tokens + slots - self.position.shape[1]

    def positions(self, later: int) -> torch.Tensor:
        """Of these slots and `later` ones behind them, int32 `[B, slots + later]`."""
        behind = torch.arange(later, dtype=torch.int32, device=self.position.device) + self.num_tokens
        return torch.cat([self.position, behind.expand(len(self.position), -1)], 1)

    def in_slots(self, mask: torch.Tensor, later: int) -> torch.Tensor:
        """`mask [B, positions]` of bool as one over slots, `[B, slots + later]`, in which holes are False."""
        held = mask.gather(1, self.position.clamp(min=0).long()) & (self.position >= 0)
        return torch.cat([held, mask[:, self.num_tokens : self.num_tokens + later]], 1)

    def key_mask(self, mask: torch.Tensor | None, later: int) -> torch.Tensor | None:
        """`in_slots` where there may be no mask to begin with; None if nothing is hidden for certain."""
        if mask is not None:
            return self.in_slots(mask, later)
        return None if self.is_full else torch.nn.functional.pad(self.position >= 0, (0, later), value=True)

    @cached_property
    def aligned(self) -> "Kept":
        """What `align` makes of it."""
        if self.is_aligned:
            return self
        aligned = self._with(take(self.position[:, None], self._index)[:, 0])
        aligned.is_aligned = True
        return aligned

    @cached_property
    def _index(self) -> torch.Tensor:
        return last_of_rows(self.position >= 0, self.most)

    def align(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor [B, H, slots + later, D]` with each row's tokens moved to the end, in their order, holes cut off."""
        if self.is_aligned:
            return tensor
        slots = self.position.shape[1]
        return torch.cat([take(tensor[:, :, :slots], self._index), tensor[:, :, slots:]], 2)

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Kept":
        """With `function` applied to the rows. Fewer rows may hold less than `most`: it is not counted again."""
        return self._with(function(self.position))

    def _with(self, position: torch.Tensor) -> "Kept":
        twin = copy.copy(self)
        twin.position = position
        for cached in ("aligned", "_index"):
            vars(twin).pop(cached, None)
        return twin

    def state(self) -> dict[str, torch.Tensor]:
        """As tensors by name, for a file."""
        num_tokens = torch.tensor(self.num_tokens, dtype=torch.int64, device=self.position.device)
        # Layers share a `Kept`, and a file holds no tensor twice.
        return {"kept.position": self.position.clone(), "kept.num_tokens": num_tokens}

    @classmethod
    def from_state(cls, state: dict[str, torch.Tensor]) -> Self | None:
        """Inverse of `state`; None where the names are missing."""
        return cls(state["kept.position"], int(state["kept.num_tokens"])) if "kept.position" in state else None


def last_of_rows(is_alive: torch.Tensor, most: int) -> torch.Tensor:
    """
    For `take`: index, int64 `[B, most]`, of what is alive in each row of `is_alive [B, units]`, in order, with dead
    ones in front in a row that has fewer than `most`.
    """
    return is_alive.int().argsort(dim=1, stable=True)[:, is_alive.shape[1] - most :]


def take(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`tensor [B, H, units, ...]` at `index [B, n]` of each row, in memory of its own: `[B, H, n, ...]`."""
    index = index.view(len(index), 1, -1, *[1] * (tensor.ndim - 3))
    return tensor.gather(2, index.expand(-1, tensor.shape[1], -1, *tensor.shape[3:]))
