"""A share of right answers with what its sample leaves open."""

from dataclasses import dataclass
from math import sqrt


@dataclass
class Accuracy:
    """Correct answers out of `total`, with a 95 % Wilson interval."""

    correct: int
    total: int

    @property
    def rate(self) -> float:
        """Share of correct answers, 0 to 1."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of `rate`; it takes the questions as independent."""
        z = 1.959964
        centre = self.rate + z * z / (2 * self.total)
        spread = z * sqrt(self.rate * (1 - self.rate) / self.total + z * z / (4 * self.total**2))
        scale = 1 + z * z / self.total
        return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.rate:.2f} % ({self.correct}/{self.total}, 95 % interval {100 * low:.2f}-{100 * high:.2f})"
