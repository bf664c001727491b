"""Which PEFT adapters each token of a forward goes through."""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..edits import Edits

Tokens = tuple[tuple[str, ...], int]  # adapters, and how many tokens in a row go through them


class Adapters:
    """
    The adapter layers of a model. Where all tokens of a forward go through the same adapters, these are made the
    active ones; where they do not, all are, and what an adapter projects of the other tokens is set to zero.

    Args:
        model (`nn.Module`): with adapters of PEFT in it, or without.

    Attributes:
        default (`tuple[str, ...]`): those that are active now.
    """

    def __init__(self, model: nn.Module):
        self.layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        self.before = [(layer, layer.active_adapters) for layer in self.layers]
        self.trains = [(weight, weight.requires_grad) for layer in self.layers for weight in layer.parameters()]
        self.default: tuple[str, ...] = tuple(self.layers[0].active_adapters) if self.layers else ()
        self.known = {name for layer in self.layers for name in getattr(layer, "lora_A", ())}
        self.goes: dict[str, Tensor] = {}  # by adapter, which tokens go through it; an adapter without goes for all
        self.edits = Edits()
        self.names = self.default

    def choose(self, tokens: Sequence[Tokens]) -> None:
        """The next forward's one row has these tokens."""
        sets = {adapters for adapters, _ in tokens}
        wanted = tuple(dict.fromkeys(name for adapters, _ in tokens for name in adapters))
        if missing := sorted(set(wanted) - self.known):
            raise ValueError(f"The model has no adapter {missing}; it has {sorted(self.known)}.")
        if self.names != wanted:
            for layer in self.layers:
                layer.set_adapter(list(wanted))
            self.names = wanted
        self.goes.clear()
        if len(sets) > 1:
            self._tell_apart(wanted)
            counts = torch.tensor([count for _, count in tokens], dtype=torch.long, device="cpu")
            for name in wanted:
                goes = torch.tensor([name in adapters for adapters, _ in tokens], dtype=torch.bool, device="cpu")
                self.goes[name] = goes.repeat_interleave(counts)

    def _tell_apart(self, wanted: Sequence[str]) -> None:
        if self.edits.done:
            return
        for layer in self.layers:
            if type(layer) is not LoraLinear or any(name in layer.lora_variant for name in wanted):
                raise ValueError(
                    f"A {type(layer).__name__} cannot take each token of a forward through other adapters; plain LoRA "
                    "of linear layers can: use SideQuestConfig(synchronous=True)."
                )
            for name, projection in layer.lora_A.items():
                self.edits.set_attribute(projection, "forward", _Some(projection, name, self.goes))

    def restore(self) -> None:
        """The model as it was."""
        self.edits.undo()
        if self.names != self.default:
            for layer, names in self.before:
                layer.set_adapter(names)
            for weight, requires_grad in self.trains:
                weight.requires_grad_(requires_grad)
        self.names = self.default


class _Some:
    """A projection whose output is zero for tokens that do not go through its adapter."""

    def __init__(self, projection: nn.Module, name: str, goes: dict[str, Tensor]):
        self.project, self.name, self.goes = projection.forward, name, goes

    def __call__(self, hidden: Tensor, *args: Any) -> Tensor:
        goes = self.goes.get(self.name)
        if goes is None:
            return self.project(hidden, *args)
        if hidden.shape[:2] != (1, len(goes)):
            raise ValueError(
                f"An adapter was given {list(hidden.shape)} where the forward has {[1, len(goes)]} tokens: the model "
                "does not take them all through it. Use SideQuestConfig(synchronous=True)."
            )
        return self.project(hidden, *args) * goes.to(hidden.device)[:, None]
