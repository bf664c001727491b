"""The user's own ids of the items, strings or integers, ordered by the sequences that name them."""

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
import torch


class ItemIds(NamedTuple):
    """
    Item ids as tensors, so that they can be mapped from a file. Several items may share one sequence.

    Attributes:
        begin (`torch.Tensor` of int32, `[N + 1]`): items of sequence r are those from `begin[r]` to `begin[r + 1]`.
        values (`torch.Tensor` of int64): the ids, `[items]`; of strings their bounds in `text`, `[items + 1]`.
        text (`torch.Tensor` of uint8, *optional*): UTF-8 of all ids; None if they are integers.
    """

    begin: torch.Tensor
    values: torch.Tensor
    text: torch.Tensor | None

    @classmethod
    def build(cls, item_ids: Sequence[Any], order: np.ndarray, rank: np.ndarray) -> Self:
        """
        Args:
            item_ids: one string or integer per row that the index was built from.
            order, rank (`np.ndarray`, `[rows]`): see `Sorted`.
        """
        if len(item_ids) != len(order):
            raise ValueError(f"There are {len(item_ids)} item_ids for {len(order)} sequences; pass one for each.")
        begin = np.searchsorted(rank, np.arange(rank[-1] + 2)).astype(np.int32)
        ids = np.asarray(item_ids)
        if np.issubdtype(ids.dtype, np.integer):
            return cls(torch.from_numpy(begin), torch.from_numpy(ids[order].astype(np.int64)), None)
        if not all(isinstance(item, str) for item in item_ids):
            raise TypeError(f"item_ids hold {ids.dtype}; they must all be integers or all be strings.")
        encoded = [item_ids[row].encode() for row in order.tolist()]
        bounds = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        text = torch.frombuffer(bytearray(b"".join(encoded)) or bytearray(1), dtype=torch.uint8)
        return cls(torch.from_numpy(begin), torch.from_numpy(bounds), text)

    def __len__(self) -> int:
        return int(self.begin[-1])

    def at(self, position: int) -> int | str:
        """The id of the item at a position, in the order of the sequences."""
        if self.text is None:
            return int(self.values[position])
        low, high = self.values[position : position + 2].tolist()
        return bytes(self.text[low:high].numpy()).decode()

    def tolist(self) -> list[int] | list[str]:
        """All ids, in the order of the sequences."""
        if self.text is None:
            return self.values.tolist()
        text, bounds = self.text.numpy().tobytes(), self.values.tolist()
        return [text[low:high].decode() for low, high in pairwise(bounds)]

    def mask(self, wanted: Collection[Any]) -> np.ndarray:
        """Which items have one of the `wanted` ids, bool `[items]`. An id that no item has is an error."""
        wanted = set(wanted)
        if self.text is None:
            found = np.isin(self.values.numpy(), np.array(sorted(wanted)))
            missing = wanted - set(self.values.numpy()[found].tolist())
        else:
            ids = self.tolist()
            found = np.array([item in wanted for item in ids])
            missing = wanted.difference(ids)
        if missing:
            raise ValueError(
                f"{len(missing)} of these ids are not in the index, such as {next(iter(missing))!r}; its items are "
                "named by the item_ids it was built with."
            )
        return found
