"""`DenseLayer`: what a full-attention layer of a `DynamicCache` becomes when tokens are dropped from it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from .kept import Kept, last_of_rows, take
from .kv import DenseView, HandleLayer

Pair = tuple[torch.Tensor, torch.Tensor]
EMPTY = torch.empty(0, dtype=torch.float32, device="cpu")


class DenseLayer(HandleLayer):
    """Keys and values in full precision, each row's tokens aligned at the newest one."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor):
        super().__init__()
        self.replace_tensors(key, value)

    def reset(self) -> None:
        self.is_initialized, self.num_tokens, self.kept = False, 0, None
        self._held: Pair = (EMPTY, EMPTY)  # keys [B, Hkv, n, D] and values [B, Hkv, n, Dv]

    @torch.compiler.disable(reason="a handle is no part of a graph")
    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Pair:
        """As `DynamicLayer.update`; returns handles, of which a patched model reads what each row holds."""
        if not self.is_initialized:
            self.replace_tensors(key_states, value_states)
        else:
            key, value = self._held
            self._held = torch.cat([key, key_states], 2), torch.cat([value, value_states], 2)
            self.num_tokens += key_states.shape[2]
        key, value = self.full_tensors()
        view = DenseView(self.num_held, key, value, self.kept)
        # A handle carries no gradient.
        return view.tensors() if torch.is_grad_enabled() and key.requires_grad else view.handles()

    def full_tensors(self) -> Pair:
        return self._held

    def replace_tensors(self, key: torch.Tensor, value: torch.Tensor) -> None:
        self.reset()
        self.lazy_initialization(key, value)
        self._held, self.num_tokens = (key, value), key.shape[2]

    def map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if self.is_initialized:
            self._held = function(self._held[0]), function(self._held[1])
        self.kept = self.kept and self.kept.mapped(function)

    def remove_last(self, num_tokens: int) -> None:
        self.num_tokens -= num_tokens
        key, value = self.full_tensors()
        self._held = key[:, :, : self.num_tokens], value[:, :, : self.num_tokens]

    def drop(self, position: torch.Tensor) -> torch.Tensor:
        is_alive = position >= 0
        index = last_of_rows(is_alive, int(is_alive.sum(1).max()))
        key, value = self.full_tensors()
        self._held = take(key, index), take(value, index)
        return take(position[:, None], index)[:, 0]

    def state(self) -> dict[str, torch.Tensor]:
        held = {"key": self._held[0], "value": self._held[1]} if self.is_initialized else {}
        return held | ({} if self.kept is None else self.kept.state())

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        key, value = state["key"], state["value"]
        self.replace_tensors(key, value)
        self.kept = Kept.from_state(state)
        if self.kept is not None:
            self.num_tokens = self.kept.seen(key.shape[2])

    def tensors(self) -> Iterator[torch.Tensor]:
        yield from self._held
        if self.kept is not None:
            yield self.kept.position
