"""What S2O has left out so far, for reports."""

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class LayerDensity:
    """
    Sparse prefill of one layer so far.

    Attributes:
        visited_pairs, causal_pairs (`int`): (query, key) pairs attended, and how many dense attention would have.
        missed_mass (`float`): estimated softmax mass of the pairs not attended, summed over `rows`, the query rows.
    """

    visited_pairs: int
    causal_pairs: int
    missed_mass: float
    rows: int

    @property
    def density(self) -> float | None:
        """Share of the pairs that were attended; None before the first prefill."""
        return self.visited_pairs / self.causal_pairs if self.causal_pairs else None

    @property
    def missed(self) -> float | None:
        """Estimated share of the softmax mass that was not attended, mean over rows; None before the first prefill."""
        return self.missed_mass / self.rows if self.rows else None

    def to_dict(self) -> dict[str, Any]:
        held = {entry.name: getattr(self, entry.name) for entry in fields(LayerDensity)}
        return held | {"density": self.density, "missed": self.missed}


@dataclass(frozen=True)
class S2OReport(LayerDensity):
    """Sparse prefill so far, summed over `layers`, which hold the same by layer index."""

    layers: dict[int, LayerDensity] = field(default_factory=dict)

    @classmethod
    def of(cls, layers: dict[int, LayerDensity]) -> "S2OReport":
        sums = {
            each.name: sum(getattr(layer, each.name) for layer in layers.values()) for each in fields(LayerDensity)
        }
        return cls(**sums, layers=layers)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"layers": {index: layer.to_dict() for index, layer in self.layers.items()}}

    def __str__(self) -> str:
        if self.density is None:
            return ""
        return f"prefill density so far {self.density:.2f}, missed mass {self.missed:.3f}"
