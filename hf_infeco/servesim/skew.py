"""What it costs that sequences which decode together differ in length: t = t_mean + alpha (t_max - t_mean)."""

from bisect import bisect_left
from pathlib import Path
from typing import Any

from .cells import csv_rows


class Skew:
    """
    Alpha by five buckets: tokens of the chunk, sequences, how many of them are long, the longest, the prefix' length.

    Args:
        alphas: by (chunk's place, n's, rate's, longest's, prefix').
        chunks: the values of the first, of which the nearest one counts.
        bins: upper edges of the other four.
        default: where a bucket was not measured.
    """

    def __init__(
        self,
        alphas: dict[tuple[int, ...], float],
        chunks: list[int],
        bins: list[list[float]],
        default: float,
    ):
        self.alphas, self.chunks, self.bins, self.default = alphas, chunks, bins, default

    @classmethod
    def read(cls, path: Path, fit: dict[str, Any], tp: int) -> "Skew | None":
        """From `skew_fit.csv` and what `meta.yaml` says of it; None where that switches it off or has none."""
        of_width = (fit.get("per_tp") or {}).get(tp)
        if not fit.get("enabled") or of_width is None or not path.is_file():
            return None
        axes = fit["bucket_axes"]
        names = ("n", "skew_rate", "kv_big", "kp")
        places = [{label: i for i, label in enumerate(axes[f"{name}_labels"])} for name in names]
        labels = [f"{name}_label" for name in names]
        rows = [row for _, row in csv_rows(path, "pc", *labels, "alpha")]
        chunks = sorted({int(row["pc"]) for row in rows})
        alphas = {
            (chunks.index(int(row["pc"])), *(place[row[label]] for place, label in zip(places, labels))): float(
                row["alpha"]
            )
            for row in rows
        }
        # Both kinds of files start with a lower edge that belongs to no bucket.
        return cls(alphas, chunks, [list(axes[f"{name}_bins"])[1:] for name in names], of_width["alpha_default"])

    def alpha(self, chunk: int, prefix: int, n: int, mean: float, longest: int, shortest: int) -> float:
        place = bisect_left(self.chunks, chunk)
        place = min(place, len(self.chunks) - 1)
        if place and self.chunks[place] > chunk and chunk - self.chunks[place - 1] < self.chunks[place] - chunk:
            place -= 1
        rate = (mean - shortest) / (longest - shortest)
        n_bins, rate_bins, longest_bins, prefix_bins = self.bins
        key = (
            place,
            bisect_left(n_bins, n),
            bisect_left(rate_bins, rate),
            bisect_left(longest_bins, longest),
            bisect_left(prefix_bins, prefix),
        )
        return self.alphas.get(key, self.default)
