"""
What a method is that `patch` can apply, and which there are.

A method has a folder of its own, with its settings in `config.py` and a `Method` in `method.py`, which the folder
registers when it is imported. Nothing else in this package asks which method it is dealing with.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Protocol

from transformers import PreTrainedModel

from .edits import Edits
from .report import Status
from .survey import Layer, Survey


class Outcome(NamedTuple):
    """What comes of a method on a layer. Attributes as of `AreaReport`."""

    status: Status
    detail: str
    backend: str | None = None


class Packing(Protocol):
    """How many tokens a cache packs, and what such a token weighs."""

    def packed_tokens(self, num_tokens: int) -> int:
        """Of a sequence of `num_tokens`."""

    def bits_per_token(self, key_dim: int, value_dim: int) -> float:
        """In one KV head."""


class Method(ABC):
    """
    A method without state: settings come from the user's `InfecoConfig`, what it changes goes into `Edits`.

    Attributes:
        name (`str`): of its field in `InfecoConfig`, and of its area in a report.
    """

    name: ClassVar[str]

    @abstractmethod
    def refuse(self, found: Survey, layer: Layer) -> str | None:
        """Why the method cannot work on a layer, as a sentence without its full stop; None if it can."""

    @abstractmethod
    def apply(self, model: PreTrainedModel, settings: Any, layers: list[int], edits: Edits) -> None:
        """
        Has the method work on these layers, of which there is at least one. Their attention is ours by now, with a
        `LayerPlan` on each module, unless the survey has a reason against that.
        """

    @abstractmethod
    def outcome(self, found: Survey, layer: Layer, settings: Any) -> Outcome:
        """What comes of the method on a layer that it does not refuse: planned, or by what has run so far."""

    def packing(self, settings: Any) -> Packing | None:
        """How the method stores the cache of its layers; None where it leaves the cache alone."""
        return None

    def measured(self, found: Survey) -> Any:
        """
        What it has counted so far, with a `to_dict` and, for the last line of a report, a `__str__`; None for nothing.
        """
        return None

    def warm_up_tokens(self, settings: Any) -> int:
        """How long a prompt has to be for the method to compile and measure all that it will."""
        return 0


_methods: dict[str, Method] = {}


def register(method: Method) -> None:
    """
    Adds a method; reports list methods in the order of registration.

    Raises:
        ValueError: if another method has its name.
    """
    if method.name in _methods:
        raise ValueError(f"Method {method.name!r} is already registered by {type(_methods[method.name]).__name__}.")
    _methods[method.name] = method


def registered() -> list[Method]:
    return list(_methods.values())
