"""The packed tokens of one layer, in buffers that grow by a fraction instead of being rebuilt at every step."""

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Self

import torch

from ..kept import last_of_rows, take
from ..kernels.innerq.reference import GROUP, Packed, PackedKV

MIN_SPARE_TILES = 1
GROWTH = 16  # buffers are copied when so many times fewer tokens are added than are there
NORM = "value.norm"  # name of the buffer of the values' norms


class PackedStore:
    """
    Append-only storage of quantized tokens, in tiles of `GROUP` tokens. Codes are written once and never touched
    again.

    Attributes:
        is_rotated (`bool`): whether keys are, see `PackedKV`.
        num_slots (`int`): slots in use, a multiple of `GROUP`.
        num_tokens (`int`): living tokens; fewer than slots after a `crop` into a tile. After `drop` all slots count.
    """

    def __init__(self, is_rotated: bool = False):
        self.is_rotated = is_rotated
        self.key_norm: torch.Tensor | None = None  # [B, Hkv, 1, D]
        self.key_mean: torch.Tensor | None = None
        self.alive: torch.Tensor | None = None  # [num_slots]; None while every slot lives
        self.num_slots = 0
        self.num_tokens = 0
        self._buffers: dict[str, torch.Tensor] = {}  # [B, Hkv, tiles, ...]
        self._own_from = 0  # tiles before this one are a fork's too, and may not be written

    def set_channels(
        self, key_norm: torch.Tensor | None, key_mean: torch.Tensor | None, rows: torch.Tensor | None = None
    ) -> None:
        """Sets norm and mean `[B, Hkv, 1, D]`, in `rows` `[B]` of bool only, of which no token is stored yet."""
        if rows is None:
            self.key_norm, self.key_mean = key_norm, key_mean
            return
        chosen = rows[:, None, None, None]
        if key_norm is not None:
            self.key_norm = torch.where(chosen, key_norm, 1.0 if self.key_norm is None else self.key_norm)
        if key_mean is not None:
            self.key_mean = torch.where(chosen, key_mean, 0.0 if self.key_mean is None else self.key_mean)

    def append(self, key: Packed, value: Packed, value_norm: torch.Tensor) -> None:
        """Adds tiles: key, value and the values' norms `[B, Hkv, tiles, ...]`, see `PackedKV`."""
        used = self.num_slots // GROUP
        needed = used + key.words.shape[2]
        is_shared, self._own_from = used < self._own_from, self._own_from if used >= self._own_from else 0
        for name, tensor in _named(key, value, value_norm):
            if is_shared or needed > self._capacity(name):
                self._grow(name, tensor, used, needed)
            self._buffers[name][:, :, used:needed] = tensor
        added = (needed - used) * GROUP
        if self.alive is not None:
            self.alive = torch.cat([self.alive, self.alive.new_ones(added)])
        self.num_slots += added
        self.num_tokens += added

    def _capacity(self, name: str) -> int:
        """Tiles that the buffer has room for; none where it may not be written: it is of another inference mode."""
        buffer = self._buffers.get(name)
        if buffer is None or (buffer.is_inference() and not torch.is_inference_mode_enabled()):
            return 0
        return buffer.shape[2]

    def _grow(self, name: str, like: torch.Tensor, used: int, needed: int) -> None:
        """
        1/16 of spare room, one tile at least: an appended token is copied some 16 times, and little memory lies idle.
        """
        spare = max(MIN_SPARE_TILES, needed // GROWTH)
        buffer = like.new_empty(*like.shape[:2], needed + spare, *like.shape[3:])
        if used:
            buffer[:, :, :used] = self._buffers[name][:, :, :used]
        self._buffers[name] = buffer

    @property
    def least_append(self) -> int:
        """Tokens that are worth an append: where the next tile is a fork's too, all that is stored would be copied."""
        return self.num_slots // GROWTH if self.num_slots // GROUP < self._own_from else GROUP

    def fork(self) -> Self:
        """A store with the same tokens in the same buffers. The spare room stays with this one."""
        twin = copy.copy(self)
        twin._buffers, twin._own_from = dict(self._buffers), sys.maxsize
        self._own_from = max(self._own_from, self.num_slots // GROUP)
        return twin

    def drop(self, position: torch.Tensor) -> torch.Tensor:
        """
        Frees the tiles of which no row holds a token, by `position [B, num_slots]` of all slots, -1 for nothing;
        returns that of the slots left. A row's tiles move to the end. Dead slots of the others are not known here.
        """
        tiles = position[:, None].unflatten(2, (-1, GROUP))
        is_alive = (tiles[:, 0] >= 0).any(-1)
        most = int(is_alive.sum(1).max())
        self.alive = None
        if most < is_alive.shape[1]:
            index = last_of_rows(is_alive, most)
            used = self.num_slots // GROUP
            self._buffers = {name: take(buffer[:, :, :used], index) for name, buffer in self._buffers.items()}
            self.num_slots, self._own_from = most * GROUP, 0
            position = take(tiles, index).flatten(2)[:, 0]
        self.num_tokens = self.num_slots
        return position

    def view(self) -> PackedKV:
        """The tokens stored so far. Stays valid while tokens are appended: written slots are never written again."""

        def part(kind: str) -> Packed:
            words, scale = (self._buffers[f"{kind}.{field}"][:, :, :tiles] for field in ("words", "scale"))
            zero = self._buffers.get(f"{kind}.zero")
            return Packed(words, scale, None if zero is None else zero[:, :, :tiles])

        tiles = self.num_slots // GROUP
        norm = self._buffers[NORM][:, :, :tiles]
        return PackedKV(part("key"), part("value"), self.key_norm, self.key_mean, self.alive, norm, self.is_rotated)

    def remove_last(self, num_tokens: int) -> None:
        """Forgets the newest living tokens. A tile cut in the middle keeps its codes; the dead slots are masked."""
        if self.alive is None:
            kept = self.num_slots - num_tokens
        else:
            living = self.alive.nonzero().flatten()
            kept = int(living[-num_tokens])  # the first slot to go
        self.num_tokens -= num_tokens
        self.num_slots = -(-kept // GROUP) * GROUP
        alive = torch.ones(self.num_slots, dtype=torch.bool, device=self._buffers["key.words"].device)
        alive = alive if self.alive is None else self.alive[: self.num_slots].clone()
        alive[kept:] = False
        # Slots beyond `num_slots` are free for the next append: no view of the new state reaches them.
        self.alive = None if self.num_tokens == self.num_slots else alive

    def map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replaces every batched tensor by `function(tensor)`."""
        self._buffers = {name: function(buffer) for name, buffer in self._buffers.items()}
        self.key_norm, self.key_mean = (
            None if tensor is None else function(tensor) for tensor in (self.key_norm, self.key_mean)
        )

    def state(self) -> dict[str, torch.Tensor]:
        """The tokens stored, by name."""
        view = self.view()
        others = {"key_norm": view.key_norm, "key_mean": view.key_mean, "alive": view.alive}
        return {
            **dict(_named(view.key, view.value, view.value_norm)),
            **{k: v for k, v in others.items() if v is not None},
        }

    @classmethod
    def from_state(cls, state: dict[str, torch.Tensor], is_rotated: bool = False) -> Self:
        """Inverse of `state`; ignores other names."""
        store = cls(is_rotated)
        store.key_norm, store.key_mean = state.get("key_norm"), state.get("key_mean")
        store._buffers = {name: tensor for name, tensor in state.items() if name.startswith(("key.", "value."))}
        words = store._buffers["key.words"]
        if NORM not in store._buffers:  # up to format version 3 they were units [B, Hkv, T], in version 1 all were 1
            unit = store._buffers.pop("value.unit", words.new_ones(words.shape[:3], dtype=torch.float32))
            store._buffers[NORM] = unit[..., None].bfloat16()
        store.alive = state.get("alive")
        store.num_slots = words.shape[2] * GROUP
        store.num_tokens = store.num_slots if store.alive is None else int(store.alive.sum())
        return store

    def tensors(self) -> Iterator[torch.Tensor]:
        yield from self._buffers.values()
        yield from (tensor for tensor in (self.key_norm, self.key_mean, self.alive) if tensor is not None)


def _named(key: Packed, value: Packed, value_norm: torch.Tensor | None) -> Iterator[tuple[str, torch.Tensor]]:
    for kind, packed in (("key", key), ("value", value)):
        for part, tensor in packed._asdict().items():
            if tensor is not None:
                yield f"{kind}.{part}", tensor
    if value_norm is not None:
        yield NORM, value_norm
