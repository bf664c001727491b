"""The user's own ids of the items, strings or integers, ordered by the sequences that name them."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from .ragged import ranges
from .sequences import as_array


class Ids(NamedTuple):
    """
    Ids in some order.

    Attributes:
        values (`np.ndarray` of int64): the ids, `[n]`; of strings their bounds in `text`, `[n + 1]`.
        text (`np.ndarray` of uint8, *optional*): UTF-8 of all ids; None if they are integers.
    """

    values: np.ndarray
    text: np.ndarray | None

    @classmethod
    def read(cls, item_ids: Any, count: int) -> Self:
        """One id after the other for `count` sequences; a table's index of its own is not looked at."""
        ids = as_array(item_ids)
        if ids.ndim != 1:
            raise ValueError(f"item_ids have shape {ids.shape}; pass one id for each sequence.")
        if len(ids) != count:
            raise ValueError(f"There are {len(ids)} item_ids for {count} sequences; pass one for each.")
        values = ids.tolist() if ids.dtype in (object, np.uint64) or ids.dtype.kind not in "iu" else []
        if ids.dtype.kind in "iu" or (values and all(isinstance(item, int) for item in values)):
            for row, item in enumerate(values):
                if not -(2**63) <= item < 2**63:
                    raise ValueError(
                        f"item_ids[{row}]={item} is beyond 64 bits with a sign; pass such ids as strings."
                    )
            return cls(ids.astype(np.int64), None)
        for row, item in enumerate(values):
            if not isinstance(item, str):
                raise TypeError(
                    f"item_ids[{row}]={item!r} is {type(item).__name__}; ids must all be integers or all be strings."
                )
        encoded = [item.encode() for item in values]
        text = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return cls(np.cumsum([0, *map(len, encoded)], dtype=np.int64), text)

    def __len__(self) -> int:
        return len(self.values) - (self.text is not None)

    def take(self, places: np.ndarray) -> Self:
        """The ids at some places, in that order."""
        if self.text is None:
            return type(self)(self.values[places], None)
        begin, sizes = self.values[places], (self.values[1:] - self.values[:-1])[places]
        return type(self)(np.concatenate([[0], np.cumsum(sizes)]), self.text[ranges(begin, sizes)])

    def insert(self, places: np.ndarray, more: Self) -> Self:
        """These ids with others, of the same kind, put in front of those at `places`, which ascend."""
        if (self.text is None) != (more.text is None):
            raise TypeError("item_ids must all be integers or all be strings, those of the index included.")
        if self.text is None or more.text is None:
            return type(self)(np.insert(self.values, places, more.values), None)
        sizes = np.insert(np.diff(self.values), places, np.diff(more.values))
        text = np.insert(self.text, np.repeat(self.values[places], np.diff(more.values)), more.text)
        return type(self)(np.concatenate([[0], np.cumsum(sizes)]), text)

    def tails(self) -> np.ndarray:
        """One number for each id, of texts their length and last seven bytes: few others have the same."""
        if self.text is None:
            return self.values.view(np.uint64)
        begin, end = self.values[:-1], self.values[1:]
        tails = (end - begin).astype(np.uint64) << np.uint64(56)
        for back in range(1, 8 if len(self.text) else 1):
            letter = self.text[np.maximum(end - back, 0)].astype(np.uint64)
            tails |= np.where(end - back >= begin, letter, np.uint64(0)) << np.uint64(8 * (back - 1))
        return tails

    def tolist(self) -> list[Any]:
        if self.text is None:
            return self.values.tolist()
        text = self.text.tobytes()
        return [text[low:high].decode() for low, high in pairwise(self.values.tolist())]


class ItemIds(NamedTuple):
    """
    Item ids as tensors, so that they can be mapped from a file. Several items may share one sequence.

    Attributes:
        begin (`torch.Tensor` of int32, `[N + 1]`): items of sequence r are those from `begin[r]` to `begin[r + 1]`.
        values (`torch.Tensor` of int64): the ids, `[items]`; of strings their bounds in `text`, `[items + 1]`.
        text (`torch.Tensor` of uint8, *optional*): UTF-8 of all ids; None if they are integers.
        row (`torch.Tensor` of int32, `[items]`): where in the order of `build` each item was, for masks in that order.
    """

    begin: torch.Tensor
    values: torch.Tensor
    text: torch.Tensor | None
    row: torch.Tensor

    @classmethod
    def arrange(cls, ids: Ids, row: np.ndarray, rank: np.ndarray) -> Self:
        """
        Args:
            ids (`Ids`): of the items, in the order of their sequences.
            row, rank (`np.ndarray`, `[items]`): where each item was in the order of `build`, and its sequence,
                ascending.
        """
        begin = np.searchsorted(rank, np.arange(rank[-1] + 2)).astype(np.int32)
        text = None if ids.text is None else torch.from_numpy(ids.text)
        values, rows = torch.from_numpy(ids.values), torch.from_numpy(row.astype(np.int32))
        return cls(torch.from_numpy(begin), values, text, rows)

    def extend(
        self, eligible: torch.Tensor | None, old_rank: np.ndarray, more: Ids, row: np.ndarray, new_rank: np.ndarray
    ) -> Self:
        """
        The ids of the `eligible [items]`, and behind those of the same sequence `more`.

        Args:
            old_rank (`np.ndarray`): where each sequence that has eligible items is now.
            row, new_rank (`np.ndarray`, `[len(more)]`): of the new items, as for `arrange`.
        """
        ids, rows = self.ids, self.row.numpy()
        sequence = np.repeat(np.arange(len(self.begin) - 1), np.diff(self.begin.numpy()))
        if eligible is not None:
            kept = np.flatnonzero(eligible.numpy())
            sequence, ids, rows = _count_up(sequence[kept]), ids.take(kept), _count_up(rows[kept])
        rank = old_rank[sequence]
        places = np.searchsorted(rank, new_rank, side="right")
        rows = np.insert(rows, places, len(rank) + row)
        return self.arrange(ids.insert(places, more), rows, np.insert(rank, places, new_rank))

    def __len__(self) -> int:
        return len(self.row)

    @property
    def ids(self) -> Ids:
        """All ids, in the order of the sequences."""
        return Ids(self.values.numpy(), None if self.text is None else self.text.numpy())

    def at(self, position: int) -> int | str:
        """The id of the item at a position, in the order of the sequences."""
        if self.text is None:
            return int(self.values[position])
        low, high = self.values[position : position + 2].tolist()
        return bytes(self.text[low:high].numpy()).decode()

    def tolist(self) -> list[int] | list[str]:
        """All ids, in the order of the sequences."""
        return self.ids.tolist()

    def mask(self, wanted: np.ndarray) -> np.ndarray:
        """Which items have one of the `wanted` ids, bool `[items]`. An id that no item has is an error."""
        found = np.zeros(len(self), dtype=bool)
        if len(wanted) == 0:
            return found
        asked, ids = Ids.read(wanted, len(wanted)), self.ids
        if (asked.text is None) != (ids.text is None):
            raise TypeError(f"{wanted[0]!r} is no id of this index, whose ids are like {self.at(0)!r}.")
        likely = np.flatnonzero(np.isin(ids.tails(), asked.tails()))
        names, candidates = set(asked.tolist()), ids.take(likely).tolist()
        found[likely] = [item in names for item in candidates]
        missing = names.difference(candidates)
        if missing:
            raise ValueError(
                f"{len(missing)} of these ids are not in the index, such as {next(iter(missing))!r}; its items are "
                "named by the item_ids it was built with."
            )
        return found

    def content(self, eligible: torch.Tensor | None) -> Iterator[np.ndarray]:
        """What tells one set of items from another: whose sequence each `eligible [items]` is, and its id."""
        counts, kept = np.diff(self.begin.numpy()), self.ids
        if eligible is not None:
            before = np.append(0, np.cumsum(eligible.numpy()))[self.begin.numpy()]
            counts, kept = np.diff(before), kept.take(np.flatnonzero(eligible.numpy()))
            counts = counts[counts > 0]
        yield counts.astype(np.int32)
        if counts.max() > 1:  # the order in which items of one sequence came says nothing
            kept = kept.take(_sorted_within(kept.tolist(), counts))
        yield kept.values
        if kept.text is not None:
            yield kept.text


def _count_up(places: np.ndarray) -> np.ndarray:
    """Distinct numbers by their rank among all of them."""
    is_there = np.zeros(places.max() + 1, dtype=bool)
    is_there[places] = True
    return (np.cumsum(is_there) - 1)[places]


def _sorted_within(ids: list[Any], counts: np.ndarray) -> np.ndarray:
    """Places of the ids, sorted among those of each sequence, which has `counts` of them one after the other."""
    order = np.arange(len(ids))
    end = np.cumsum(counts)
    for high, count in zip(end[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
        order[high - count : high] = sorted(range(high - count, high), key=ids.__getitem__)
    return order
