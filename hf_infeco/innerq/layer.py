"""InnerQ's cache layer: sinks and recent tokens in full precision, everything between them packed."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch

from ..kept import Kept, last_of_rows, take
from ..kernels.dispatch import choose
from ..kernels.innerq.reference import (
    GROUP,
    PackedKV,
    channel_mean,
    channel_norm,
    fill_groups,
    normalize_keys,
    rotate,
    value_norms,
)
from ..kv import DenseView, HandleLayer, KVView, plain
from .config import InnerQConfig
from .padding import LeftPadding, Pair, to_positions, to_slots
from .store import PackedStore

# Lengths and windows change at every step: torch.compile would trace each anew, and cannot trace a handle at all.
NO_GRAPH = "InnerQ's storage and kernels are no graph"
EMPTY = torch.empty(0, dtype=torch.float32, device="cpu")
NOTHING: Pair = (EMPTY, EMPTY)  # what an empty layer holds


class InnerQView(KVView):
    """
    Packed tokens between two exact pieces: what one call attends to, `num_tokens` in all. `order` is that of
    `LeftPadding`; with `kept`, there is none, and all slots of `packed` count.
    """

    def __init__(
        self,
        num_tokens: int,
        sink: Pair,
        packed: PackedKV,
        recent: Pair,
        order: torch.Tensor | None = None,
        kept: Kept | None = None,
    ):
        self.sink, self.packed, self.recent, self.order = sink, packed, recent, order
        super().__init__(num_tokens, *recent, kept)

    @torch.compiler.disable(reason=NO_GRAPH)
    def dequantize(self) -> Pair:
        packed = choose("innerq_dequantize", self.recent[0].device).module.dequantize(self.packed)
        pieces = zip(self.sink, packed, self.recent, strict=True)
        # Keys are packed with channels of zeros up to whole groups.
        key, value = (torch.cat([s, p[..., : s.shape[3]].to(s.dtype), r], dim=2) for s, p, r in pieces)
        if self.kept is not None:
            return self.kept.align(key), self.kept.align(value)
        return (key, value) if self.order is None else to_positions((key, value), self.order)

    @torch.compiler.disable(reason=NO_GRAPH)
    def attend(
        self,
        query: torch.Tensor,
        scale: float,
        key_mask: torch.Tensor | None,
        sinks: torch.Tensor | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """
        Attention of the newest tokens' `query [B, H, q_len, D]` on the packed data, causal among themselves.
        `key_mask [B, positions]` of bool hides padding, `sinks [H]` are learned logits without a value, `softcap`
        bounds the logits: see `reference.packed_attention`. Returns `[B, H, q_len, Dv]`.
        """
        if self.kept is not None:
            key_mask = self.kept.key_mask(key_mask, self.num_tokens - self.kept.most)
        elif key_mask is not None and self.order is not None:
            key_mask = to_slots(key_mask, self.order)
        attend = choose("innerq_decode", query.device).module.packed_attention
        exact = [self.sink, self.recent]
        return attend(query, self.packed, exact, scale=scale, key_mask=key_mask, sinks=sinks, softcap=softcap)


class InnerQLayer(HandleLayer):
    """
    One layer of an `InnerQCache` (InnerQ, arXiv 2602.23200).

    New tokens join the exact piece `recent`. When it holds `config.recent + 32` tokens or more, its oldest ones are
    packed, 32 at a time, so that `config.recent` to `config.recent + 31` stay exact. The first flush also sets the
    sinks apart and takes the keys' channel means and norms from all tokens so far. A call's own tokens are attended
    exactly.
    """

    def __init__(self, config: InnerQConfig | None = None):
        super().__init__()
        self.config = config or InnerQConfig()
        self.reset()

    def reset(self) -> None:
        self.is_initialized = False
        self.num_tokens, self.kept = 0, None
        self._sink = NOTHING  # set apart with the first flush
        self._store: PackedStore | None = None
        self._recent = NOTHING
        self._padding: LeftPadding | None = None
        self._is_written = False  # by `replace_tensors`: slots are no longer the positions that a mask speaks of

    @property
    def waits_for_padding(self) -> bool:
        """Whether `set_left_padding` still matters to a row."""
        if self._store is None:
            return not self._is_written and self.kept is None
        return self._padding is not None and not self._padding.is_settled

    def set_left_padding(self, starts: torch.Tensor | None) -> None:
        """
        Where the rows' first real tokens are, int64 `[B]`; None where nothing is padded. Counts for rows of which no
        token is packed.
        """
        if self._store is None:
            self._padding = None if starts is None else LeftPadding(self.config.sink, starts)
        elif self._padding is not None and starts is not None:
            self._padding.update(starts)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._sink = self._recent = _own((key_states[:, :, :0], value_states[:, :, :0]))

    @torch.compiler.disable(reason=NO_GRAPH)
    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Pair:
        """
        Adds `key_states [B, Hkv, n, D]` and `value_states [B, Hkv, n, Dv]`; returns keys and values of all tokens, as
        handles once some are packed.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._recent = _join(self._recent, (key_states, value_states))
        self.num_tokens += key_states.shape[2]
        attended = self._attended()
        self._flush()
        return attended

    def _attended(self) -> Pair:
        view: KVView
        if self._store is not None:
            order = None if self._padding is None else self._padding.order
            view = InnerQView(self.num_held, self._sink, self._store.view(), self._recent, order, self.kept)
        elif self.kept is not None:
            view = DenseView(self.num_held, *self._recent, self.kept)
        else:
            return self._recent
        if torch.is_grad_enabled() and self._recent[0].requires_grad:
            return view.tensors()  # a handle carries no gradient
        return view.handles()

    def _flush(self) -> None:
        sinks = self.config.sink if self._store is None else 0
        count = (self._recent[0].shape[2] - sinks - self.config.recent) // GROUP * GROUP
        if count <= 0 or (self._store is not None and count < self._store.least_append):
            return
        if self._store is None:
            self._sink = _own(_slice(self._recent, 0, sinks))
        rest, measured, real = _slice(self._recent, sinks, None), None, None
        if self._padding is not None and not self._padding.is_settled:
            rest, measured, real = self._settle(self._padding, rest, count)
        elif self.kept is not None:
            alive = self.kept.key_mask(None, self.num_held - self.kept.most)
            if alive is not None:
                real = alive[:, -rest[0].shape[2] :]
                rest = _only(rest, real)
        with torch.no_grad():  # codes carry no gradient; the exact tokens keep theirs
            is_first, store = self._store is None, self._store or PackedStore(self.config.rotate_keys)
            key, value = fill_groups(rest[0]), rest[1]
            if is_first or measured is not None:
                mean = channel_mean(key, real) if self.config.center_keys else None
                norm = channel_norm(key, mean, real) if self.config.normalize_keys else None
                store.set_channels(norm, mean, measured)
            kernel = choose("innerq_quantize", key.device).module
            key, value = key[:, :, :count], value[:, :, :count]
            channels = store.key_norm, store.key_mean
            if store.is_rotated:
                key, channels = rotate(normalize_keys(key, *channels)), (None, None)
            value_norm, bits = value_norms(value, self.config.normalize_values), self.config.value_bits
            store.append(
                kernel.quantize_keys(key, self.config.key_bits, *channels),
                kernel.quantize_values(value, bits, self.config.hybrid_values, value_norm),
                value_norm,
            )
        self._store, self._recent = store, _own(_slice(rest, count, None))

    def _settle(self, padding: LeftPadding, rest: Pair, count: int) -> tuple[Pair, torch.Tensor, torch.Tensor]:
        """
        Gives rows their sinks before `count` of the tokens behind the sinks and the packed ones, `rest`, are packed.
        Returns `rest` with zeros in place of padding, the rows, bool `[B]`, and which tokens are real `[B, n]`.
        """
        padding.map_tensors(lambda tensor: tensor.to(rest[0].device))
        first = self.num_tokens - rest[0].shape[2]
        exact, begin = (self._recent, 0) if self._store is None else (rest, first)
        self._sink, rows = padding.settle(self._sink, exact, begin, first + count)
        real = padding.is_real(first, self.num_tokens)
        return _only(rest, real), rows, real

    def remove_last(self, num_tokens: int) -> None:
        self.num_tokens -= num_tokens
        padding = self._padding = self._padding if self.num_tokens else None
        if padding is not None and self._store is not None and self.num_tokens <= padding.width:
            self._sink = padding.crop(self._sink, self.num_tokens)
        from_recent = min(num_tokens, self._recent[0].shape[2])
        self._recent = _drop_last(self._recent, from_recent)
        if self._store is None:
            return
        from_store = min(num_tokens - from_recent, self._store.num_tokens)
        if from_store:
            self._store.remove_last(from_store)
        if self._store.num_tokens == 0:
            # Back to the state before the first flush: nothing packed, the sinks are the oldest exact tokens.
            self._recent = _join(_drop_last(self._sink, num_tokens - from_recent - from_store), self._recent)
            self._sink = _drop_last(self._sink, self._sink[0].shape[2])
            self._store = None
            self.set_left_padding(None if padding is None else padding.starts)

    def everything(self, batch: int, device: torch.device) -> Kept:
        kept, padding, store = super().everything(batch, device), self._padding, self._store
        if padding is not None:
            first = kept.position if padding.order is None else padding.order.int()
            position = torch.cat([first, kept.position[:, first.shape[1] :]], 1)
            kept = Kept(position.where(position >= padding.starts[:, None], -1), self.num_tokens)
        if store is not None and store.alive is not None:
            living = torch.nn.functional.pad(
                store.alive, (self._sink[0].shape[2], self._recent[0].shape[2]), value=True
            )
            position = kept.position.new_full((batch, len(living)), -1)
            position[:, living] = kept.position
            kept = Kept(position, self.num_tokens)
        return kept

    def drop(self, position: torch.Tensor) -> torch.Tensor:
        # From here on `kept` says where rows begin, and which slots of a tile are dead.
        self._padding = None
        slots = 0 if self._store is None else self._store.num_slots
        sink, packed, recent = position.split([self._sink[0].shape[2], slots, self._recent[0].shape[2]], 1)
        self._sink, sink = _drop(self._sink, sink)
        self._recent, recent = _drop(self._recent, recent)
        if self._store is not None:
            packed = self._store.drop(packed)
            if self._store.num_slots == 0:  # as before the first flush: there are exact tokens only
                self._recent, self._store = _join(self._sink, self._recent), None
                self._sink = _drop_last(self._sink, self._sink[0].shape[2])
        return torch.cat([sink, packed, recent], 1)

    def fork(self) -> Self:
        twin = super().fork()
        twin._padding, twin._store = copy.copy(self._padding), self._store and self._store.fork()
        return twin

    def full_tensors(self) -> Pair:
        key, value = self._attended()
        return plain(key), plain(value)

    def replace_tensors(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """They are exact tokens like those of a first call, and are packed with a later one."""
        self.reset()
        self.lazy_initialization(key, value)
        self._recent, self.num_tokens, self._is_written = (key, value), key.shape[2], True

    def map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.kept = self.kept and self.kept.mapped(function)
        if self._padding is not None:
            self._padding.map_tensors(function)
        if not self.is_initialized:
            return
        self._sink = function(self._sink[0]), function(self._sink[1])
        self._recent = function(self._recent[0]), function(self._recent[1])
        if self._store is not None:
            self._store.map_tensors(function)

    def state(self) -> dict[str, torch.Tensor]:
        if not self.is_initialized:
            return {}
        pieces = {"sink": self._sink, "recent": self._recent}
        exact = {f"{name}.{i}": tensor for name, pair in pieces.items() for i, tensor in enumerate(pair)}
        padding = {} if self._padding is None else self._padding.state()
        kept = {} if self.kept is None else self.kept.state()
        return exact | padding | kept | ({} if self._store is None else self._store.state())

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.lazy_initialization(state["recent.0"], state["recent.1"])
        self._sink = state["sink.0"], state["sink.1"]
        self._recent = state["recent.0"], state["recent.1"]
        self._store = None
        if "key.words" in state:
            self._store = PackedStore.from_state(state, self.config.rotate_keys)
        if "padding.starts" in state:
            self._padding = LeftPadding(self.config.sink, state["padding.starts"], state["padding.shift"])
        num_packed = 0 if self._store is None else self._store.num_tokens
        self.num_tokens = self._sink[0].shape[2] + num_packed + self._recent[0].shape[2]
        self.kept = Kept.from_state(state)
        if self.kept is not None:
            self.num_tokens = self.kept.seen(self.num_tokens)

    def tensors(self) -> Iterator[torch.Tensor]:
        yield from (*self._sink, *self._recent)
        if self._store is not None:
            yield from self._store.tensors()
        if self._padding is not None:
            yield from self._padding.tensors()
        if self.kept is not None:
            yield self.kept.position


def _join(first: Pair, second: Pair) -> Pair:
    """Copies of both, so that a prompt does not keep the memory of, say, a fused qkv projection alive."""
    return torch.cat([first[0], second[0]], dim=2), torch.cat([first[1], second[1]], dim=2)


def _own(pair: Pair) -> Pair:
    """Copies of slices, so that a few kept tokens do not keep the memory of a whole prompt alive."""
    return pair[0].clone(), pair[1].clone()


def _only(pair: Pair, is_real: torch.Tensor) -> Pair:
    """
    With zeros where `is_real [B, n]` is False: padding and holes are packed like any token, and would take part in the
    scales of the values that they lie among.
    """
    key, value = (tensor.where(is_real[:, None, :, None], 0) for tensor in pair)
    return key, value


def _drop(pair: Pair, position: torch.Tensor) -> tuple[Pair, torch.Tensor]:
    """What of an exact piece is left of rows that hold `position [B, n]` of it, aligned, and its positions."""
    is_alive = position >= 0
    index = last_of_rows(is_alive, int(is_alive.sum(1).max()))
    return (take(pair[0], index), take(pair[1], index)), take(position[:, None], index)[:, 0]


def _slice(pair: Pair, start: int, stop: int | None) -> Pair:
    return pair[0][:, :, start:stop], pair[1][:, :, start:stop]


def _drop_last(pair: Pair, count: int) -> Pair:
    key, value = (tensor[:, :, : tensor.shape[2] - count] for tensor in pair)
    return key, value
