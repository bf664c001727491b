"""Left padding: where each row of a batch begins, and how a row's first real tokens become its sinks."""

from collections.abc import Callable

import torch

Pair = tuple[torch.Tensor, torch.Tensor]  # keys [B, Hkv, n, D] and values [B, Hkv, n, Dv]


class LeftPadding:
    """
    The rows of one layer's left-padded batch.

    A layer keeps its first slots exact, as sinks, and in a padded row they would hold padding. So before the first
    real token of a row is packed, the row is settled: its first real tokens move into the sinks' slots, and the slots
    from there to where they ended hold nothing, as many as there was padding. Behind them, slots are positions.

        positions   | padding           | first real tokens | further tokens
        slots       | first real tokens | nothing           | further tokens

    A row whose padding reaches into the recent tokens is settled later, so that every row has all of its sinks.

    Args:
        sinks (`int`): slots of the sinks.
        starts (`torch.Tensor` of int64, `[B]`): position of each row's first real token.
        shift (`torch.Tensor` of int64, `[B]`, *optional*): position of the first sink of a settled row, and -1 of
            another one, as all are by default.

    Attributes:
        order (`torch.Tensor` of int64, `[B, n]`, *optional*): positions of the tokens in the first slots; in the slots
            behind them the position is the slot. None means that it is everywhere.
        is_settled (`bool`): whether all rows are.
        width (`int`): no sink of a settled row is a position from here on.
    """

    def __init__(self, sinks: int, starts: torch.Tensor, shift: torch.Tensor | None = None):
        self.sinks, self.starts = sinks, starts
        self.shift, self.is_settled, self.width = torch.full_like(starts, -1), False, 0
        self.order: torch.Tensor | None = None
        if shift is not None:
            self._set_shift(shift)

    def _set_shift(self, shift: torch.Tensor) -> None:
        """Waits for the device; called when rows are settled or cropped, not at every step."""
        self.shift, self.is_settled = shift, bool((shift >= 0).all())
        moved = shift.clamp(min=0)[:, None]
        self.width = int(moved.max()) + self.sinks
        slot = torch.arange(self.width, dtype=torch.int64, device=shift.device)[None]
        order = torch.where(slot < self.sinks + moved, slot - self.sinks, slot)
        order = torch.where(slot < self.sinks, slot + moved, order)
        self.order = order if 0 < self.sinks < self.width else None

    def update(self, starts: torch.Tensor) -> None:
        """Takes over where rows begin that are not settled: a first chunk may have held nothing but their padding."""
        if not self.is_settled:
            self.starts = torch.where(self.shift < 0, starts.to(self.starts.device), self.starts)

    def settle(self, sink: Pair, exact: Pair, first: int, end: int) -> tuple[Pair, torch.Tensor]:
        """
        Settles the rows that begin before position `end`, up to which tokens are about to be packed.

        Args:
            sink: the sinks so far.
            exact: the tokens from position `first` on, up to which they were packed before.

        Returns:
            The sinks, and the rows that were settled, bool `[B]`.
        """
        rows = (self.shift < 0) & (self.starts < end)
        latest = first + exact[0].shape[2] - self.sinks  # in rows with fewer tokens than sinks some stay padding
        self._set_shift(torch.where(rows, self.starts.clamp(max=latest), self.shift))
        position = self.shift[:, None] + torch.arange(self.sinks, dtype=torch.int64, device=rows.device)
        at = torch.where(position < self.starts[:, None], -1, position - first)
        found, chosen = _gather(exact, at), rows[:, None, None, None]
        return (torch.where(chosen, found[0], sink[0]), torch.where(chosen, found[1], sink[1])), rows

    def is_real(self, first: int, end: int) -> torch.Tensor:
        """Whether the slots `first` to `end`, behind the sinks, hold a real token: bool `[B, end - first]`."""
        slot = torch.arange(first, end, dtype=torch.int64, device=self.starts.device)
        return slot >= torch.where(self.shift < 0, self.starts, self.shift + self.sinks)[:, None]

    def crop(self, sink: Pair, num_tokens: int) -> Pair:
        """
        The sinks moved so that none is a position from `num_tokens` on; padding takes the slots that get free. A row
        of which nothing but padding is left is not settled any more.
        """
        before = self.shift.clamp(min=0)
        after = before.clamp(max=max(num_tokens - self.sinks, 0))
        at = torch.arange(self.sinks, dtype=torch.int64, device=before.device) - (before - after)[:, None]
        self._set_shift(torch.where((self.shift < 0) | (self.starts >= num_tokens), -1, after))
        return _gather(sink, at)

    def map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replaces every tensor by `function(tensor)`; batch is dimension 0."""
        self.starts, self.shift = function(self.starts), function(self.shift)
        self.order = None if self.order is None else function(self.order)

    def state(self) -> dict[str, torch.Tensor]:
        """What a saved layer needs of it. Layers are told the same tensor, and a file holds no tensor twice."""
        return {"padding.starts": self.starts.clone(), "padding.shift": self.shift}

    def tensors(self) -> list[torch.Tensor]:
        return [tensor for tensor in (self.starts, self.shift, self.order) if tensor is not None]


def left_padding(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position of each row's first token that `attention_mask [B, n]` shows, int64 `[B]`; n in a row that has none."""
    return ((attention_mask != 0).cumsum(1) == 0).sum(1)


def to_slots(mask: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """A mask over positions `[B, n]` as one over slots."""
    return torch.cat([mask[:, : order.shape[1]].gather(1, order), mask[:, order.shape[1] :]], 1)


def to_positions(pair: Pair, order: torch.Tensor) -> Pair:
    """Tokens as they lie in slots, ordered by their positions."""
    slots, length = order.argsort(1), order.shape[1]
    moved = _gather((pair[0][:, :, :length], pair[1][:, :, :length]), slots)
    key, value = (torch.cat([head, whole[:, :, length:]], 2) for head, whole in zip(moved, pair, strict=True))
    return key, value


def _gather(pair: Pair, at: torch.Tensor) -> Pair:
    """Tokens `at [B, n]` of each row; zeros where that is outside."""
    inside = ((at >= 0) & (at < pair[0].shape[2]))[:, None, :, None]
    at = at.clamp(0, max(pair[0].shape[2] - 1, 0))[:, None, :, None]
    key, value = (
        tensor.gather(2, at.expand(-1, tensor.shape[1], -1, tensor.shape[3])).where(inside, 0) for tensor in pair
    )
    return key, value
