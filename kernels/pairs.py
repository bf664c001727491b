"""How many (query, key) pairs an attention visits, of those that dense causal attention would."""

from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class PairStats:
    """
    What causal attention has attended, summed over calls, batch and query heads.

    Attributes:
        visited_pairs, causal_pairs: (query, key) pairs attended exactly, near and odd keys included, and those of
            dense attention. What a GPU has counted are tensors without dimensions.
        missed_mass: softmax mass that was not visited, by estimate, summed over rows; with compensation it entered by
            its means.
        rows: query rows.
        visits (`torch.Tensor` `[B, Hkv, segments, kv_len]`, *optional*): share of each segment's rows that visited
            each key.
    """

    visited_pairs: int | torch.Tensor
    causal_pairs: int
    missed_mass: float | torch.Tensor = 0.0
    rows: int = 0
    visits: torch.Tensor | None = None

    @property
    def density(self) -> float | None:
        """Visited share of the pairs of dense causal attention, 0 to 1; None before there are any."""
        return float(self.visited_pairs / self.causal_pairs) if self.causal_pairs else None

    @property
    def missed(self) -> float | None:
        """Estimated softmax mass not visited, mean over rows, 0 to 1; None before there are any."""
        return float(self.missed_mass / self.rows) if self.rows else None

    @classmethod
    def dense(cls, query: torch.Tensor, key: torch.Tensor) -> Self:
        """Of attention that leaves nothing out: `query [B, H, q_len, D]` is the last positions of `key`."""
        rows = query.shape[0] * query.shape[1]
        pairs = rows * count_causal_pairs(query.shape[2], key.shape[2])
        return cls(pairs, pairs, 0.0, rows * query.shape[2])

    def __add__(self, other: "PairStats") -> "PairStats":
        return PairStats(
            self.visited_pairs + other.visited_pairs,
            self.causal_pairs + other.causal_pairs,
            self.missed_mass + other.missed_mass,
            self.rows + other.rows,
        )


def count_causal_pairs(q_len: int, kv_len: int) -> int:
    """(query, key) pairs of one head when the queries are the last `q_len` of `kv_len` positions."""
    return q_len * (kv_len - q_len) + q_len * (q_len + 1) // 2
