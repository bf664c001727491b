"""What S2O has left out so far, for reports."""

from dataclasses import dataclass, field
from typing import Any

from ..kernels.pairs import PairStats


@dataclass(frozen=True)
class S2OReport(PairStats):
    """Sparse prefill so far, summed over `layers`, which hold the same by layer index."""

    layers: dict[int, PairStats] = field(default_factory=dict)

    @classmethod
    def of(cls, layers: dict[int, PairStats]) -> "S2OReport":
        total = sum(layers.values(), PairStats(0, 0))
        return cls(total.visited_pairs, total.causal_pairs, total.missed_mass, total.rows, layers=layers)

    def to_dict(self) -> dict[str, Any]:
        return _numbers(self) | {"layers": {index: _numbers(layer) for index, layer in self.layers.items()}}

    def __str__(self) -> str:
        if self.density is None:
            return ""
        return f"prefill density so far {self.density:.2f}, missed mass {self.missed:.3f}"


def _numbers(stats: PairStats) -> dict[str, Any]:
    names = ("visited_pairs", "causal_pairs", "missed_mass", "rows", "density", "missed")
    return {name: getattr(stats, name) for name in names}
