"""
What travels from a cache layer to our attention: `KVHandle`, a tensor that dequantizes only if somebody looks inside,
and `HandleLayer`, the base of cache layers that answer `update` with handles. `cache_nbytes` weighs any cache.
"""

import copy
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch.utils._pytree import tree_map
from transformers import Cache, EncoderDecoderCache
from transformers.cache_utils import CacheLayerMixin
from transformers.utils import logging

from . import compat
from .kept import Kept

logger = logging.get_logger(__name__)

# Names in a layer's state of what holds for all heads: its tensors have no dimension of heads.
FOR_ALL_HEADS = ("alive", "kept.", "padding.")


class KVView:
    """
    What one `update` call attends to: a picture of the layer at that moment, the new tokens included.

    A view stays valid while its layer moves on, because layers append and never overwrite. Subclasses say how the
    tokens are stored by defining `dequantize`, and how they are attended as they are, if they can be, by `attend`.

    Args:
        num_tokens (`int`): keys in the view.
        key (`torch.Tensor` `[B, Hkv, n, D]`), value (`torch.Tensor` `[B, Hkv, n, Dv]`): samples of shape, dtype,
            device.
        kept (`Kept`, *optional*): of a layer that tokens were dropped from.
    """

    def __init__(self, num_tokens: int, key: torch.Tensor, value: torch.Tensor, kept: Kept | None = None):
        self.num_tokens, self.kept = num_tokens, kept
        self._samples = key, value
        self._tensors: tuple[torch.Tensor, torch.Tensor] | None = None

    def handles(self) -> tuple["KVHandle", "KVHandle"]:
        """
        Keys and values as `KVHandle`s. They hold the view and the view does not hold them, so that what it
        dequantized goes with the last of them, without waiting for Python's cycle collector.
        """
        return KVHandle(self, self._samples[0], 0), KVHandle(self, self._samples[1], 1)

    @abstractmethod
    def dequantize(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Plain tensors `[B, Hkv, num_tokens, D]` and `[B, Hkv, num_tokens, Dv]` in the model's dtype."""

    def attend(
        self,
        query: torch.Tensor,
        scale: float,
        key_mask: torch.Tensor | None,
        sinks: torch.Tensor | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor | None:
        """
        Attention `[B, H, q_len, Dv]` of the newest tokens' `query [B, H, q_len, D]`, causal among themselves, without
        dequantizing; None where there is no such way.

        Args:
            key_mask (`torch.Tensor` of bool `[B, positions]`, *optional*): hides padding.
            sinks (`torch.Tensor` `[H]`, *optional*): learned logits without a value.
            softcap (`float`, *optional*): logits become softcap * tanh(logits / softcap).
        """
        return None

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`dequantize`, once per view."""
        if self._tensors is None:
            self._tensors = self.dequantize()
        return self._tensors

    def key_mask(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """
        `mask [B, positions]` of bool as one over the keys of `tensors`, `[B, num_tokens]`, which also hides what a row
        does not hold; None if nothing is hidden.
        """
        if self.kept is None:
            return mask
        kept = self.kept.aligned
        return kept.key_mask(mask, self.num_tokens - kept.most)


class DenseView(KVView):
    """Keys and values in full precision, of which rows hold some."""

    def dequantize(self) -> tuple[torch.Tensor, torch.Tensor]:
        key, value = self._samples
        return (key, value) if self.kept is None else (self.kept.align(key), self.kept.align(value))


class KVHandle(torch.Tensor):
    """
    Keys or values of a `KVView`, as a tensor without data.

    Shape, dtype and device are right and cost nothing. Our attention reads `handle.view_of`; any other operation
    dequantizes the view first and goes on with plain tensors, so whatever a model does between the cache and its
    attention stays correct.
    """

    view_of: KVView
    which: int

    @staticmethod
    def __new__(cls, view: KVView, like: torch.Tensor, which: int) -> "KVHandle":
        shape = (*like.shape[:2], view.num_tokens, like.shape[3])
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)

    def __init__(self, view: KVView, like: torch.Tensor, which: int):
        self.view_of = view
        self.which = which

    def __repr__(self) -> str:  # type: ignore[override]
        return f"KVHandle({'key' if self.which == 0 else 'value'}, shape={tuple(self.shape)}, dtype={self.dtype})"

    # Operations on a handle give plain tensors, never handles.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        for each in args:
            if isinstance(each, KVHandle) and each.view_of.kept and not each.view_of.kept.aligned.is_full:
                logger.warning_once(
                    "The rows of this cache hold different numbers of tokens, and a model that is not patched does "
                    "not know: give it attention_mask=hf_infeco.held_mask(cache, attention_mask), or patch it."
                )
        args, kwargs = tree_map(plain, (args, kwargs or {}))
        return func(*args, **kwargs)


def view_behind(key: torch.Tensor, value: torch.Tensor) -> KVView | None:
    """
    The view whose keys and values these are, untouched; None for anything else, such as values that a model has
    rearranged behind the cache.
    """
    if not isinstance(key, KVHandle) or not isinstance(value, KVHandle):
        return None
    is_one_view = key.view_of is value.view_of and (key.which, value.which) == (0, 1)
    return key.view_of if is_one_view else None


def plain(value: Any) -> Any:
    """The dequantized tensor behind a handle; anything else as it is."""
    return value.view_of.tensors()[value.which] if isinstance(value, KVHandle) else value


class HandleLayer(CacheLayerMixin):
    """
    Base of our cache layers: the parts of transformers' layer protocol that do not depend on how tokens are stored.

    Subclasses define `update`, `full_tensors`, `replace_tensors`, `map_tensors`, `tensors`, `reset`, `remove_last`,
    `drop`, `state` and `load_state`.

    Attributes:
        num_tokens (`int`): positions seen, those included whose tokens were dropped by `keep`: the next token's
            position.
        kept (`Kept`, *optional*): what is still held; None while that is everything.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = True
    supports_early_init = True

    def __init__(self) -> None:
        # Not the mixin's: it would assign `keys` and `values`, which are views on packed data here.
        self.is_initialized = False
        self.num_tokens = 0
        self.kept: Kept | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    @abstractmethod
    def full_tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All tokens held, as plain tensors in the model's dtype."""

    @abstractmethod
    def replace_tensors(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Holds these tokens in place of all that it held. Whoever writes one after the other passes two lengths."""

    @abstractmethod
    def map_tensors(self, function: Any) -> None:
        """Replaces every batched tensor the layer holds, if any, by `function(tensor)`; batch is dimension 0."""

    @abstractmethod
    def tensors(self) -> Iterable[torch.Tensor]:
        """Every tensor the layer holds, for counting bytes."""

    @abstractmethod
    def remove_last(self, num_tokens: int) -> None:
        """Forgets the newest `num_tokens` of all tokens; `0 < num_tokens <= self.num_tokens`. Not after `keep`."""

    @abstractmethod
    def drop(self, position: torch.Tensor) -> torch.Tensor:
        """
        Frees what it can of the slots that hold nothing any more, by `position` of all slots as in `Kept`; returns
        that of the slots left.
        """

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """All tensors by name, without spare room; none before the first token. Heads are dimension 1."""

    @abstractmethod
    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes over what `state` of another layer returned."""

    @property
    def keys(self) -> torch.Tensor | None:
        """All keys `[B, Hkv, tokens, D]`, dequantized for whoever looks; None before the first token."""
        return self.full_tensors()[0] if self.num_tokens else None

    @keys.setter
    def keys(self, key: torch.Tensor) -> None:
        value = self.full_tensors()[1] if self.is_initialized else key[:, :, :0]
        self.replace_tensors(key, value)

    @property
    def values(self) -> torch.Tensor | None:
        """All values `[B, Hkv, tokens, Dv]`, dequantized for whoever looks; None before the first token."""
        return self.full_tensors()[1] if self.num_tokens else None

    @values.setter
    def values(self, value: torch.Tensor) -> None:
        key = self.full_tensors()[0] if self.is_initialized else value[:, :, :0]
        self.replace_tensors(key, value)

    def get_seq_length(self) -> int:
        return self.num_tokens

    @property
    def num_held(self) -> int:
        """Tokens held of the row that holds the most: keys that `update` would show, were there no new ones."""
        return self.num_tokens if self.kept is None else self.kept.most + self.num_tokens - self.kept.num_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        # As of a sliding window: what is held ends at the last position, and begins where its number says.
        return self.num_held + query_length, self.num_tokens - self.num_held

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.14

    def crop(self, tokens_to_remove: int) -> None:
        """Removes tokens from the end; the argument's meaning is that of the installed transformers."""
        count = compat.tokens_to_remove(tokens_to_remove, self.num_tokens)
        if count and self.kept is not None:
            left = self.num_tokens - count
            position = torch.arange(self.num_tokens, device=self.kept.position.device)
            self.restrict((position < left).expand(len(self.kept.position), -1), left)
        elif count:
            self.remove_last(count)

    def keep(self, mask: torch.Tensor) -> None:
        """Drops the tokens at whose position `mask [B, num_tokens]` of bool is False. What is gone stays gone."""
        if self.kept is not None or not mask.all():
            self.restrict(mask, self.num_tokens)

    def restrict(self, mask: torch.Tensor, num_tokens: int) -> None:
        """`keep`, after which `num_tokens` positions count as seen."""
        kept = self.kept or self.everything(len(mask), mask.device)
        later = self.num_tokens - kept.num_tokens
        position = self.drop(kept.positions(later).where(kept.in_slots(mask, later), -1))
        self.kept = Kept(position, num_tokens) if num_tokens else None
        self.num_tokens = num_tokens

    def everything(self, batch: int, device: torch.device) -> Kept:
        """What is held as long as nothing was dropped."""
        position = torch.arange(self.num_tokens, dtype=torch.int32, device=device)
        return Kept(position.expand(batch, -1), self.num_tokens)

    def fork(self) -> Self:
        """
        A layer with the same tokens in the same memory. Neither notices what becomes of the other: a tensor that both
        hold is never written.
        """
        return copy.copy(self)

    def heads(self, heads: slice) -> Self:
        """A layer with some KV heads of this one, in memory of its own."""
        state = self.state()
        return self._of({name: t if name.startswith(FOR_ALL_HEADS) else _own(t, heads) for name, t in state.items()})

    @classmethod
    def join(cls, layers: Sequence[Self]) -> Self:
        """
        Inverse of `heads`: a layer with the KV heads of all, in order.

        Raises:
            ValueError: if they do not hold the same tokens, stored in the same way.
        """
        states = [layer.state() for layer in layers]
        first, joined = states[0], {}
        for name in dict.fromkeys(name for state in states for name in state):
            parts = [state[name] for state in states if name in state]
            shared = name.startswith(FOR_ALL_HEADS)
            is_same = len(parts) == len(states) and len({(p.dtype, *p.shape[:1], *p.shape[2:]) for p in parts}) == 1
            if not is_same or (shared and not all(torch.equal(part, first[name]) for part in parts)):
                raise ValueError(
                    f"These {cls.__name__}s differ in {name}: they do not hold the same tokens stored in the same "
                    "way, and their heads cannot be joined. Join the heads of one cache, after the same calls."
                )
            joined[name] = first[name] if shared else torch.cat(parts, 1)
        return layers[0]._of(joined)

    def _of(self, state: dict[str, torch.Tensor]) -> Self:
        """A layer with the settings of this one and another state."""
        layer = copy.copy(self)
        layer.reset()
        if state:
            layer.load_state(state)
        return layer

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.map_tensors(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.map_tensors(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor | list[int]) -> None:
        self.map_tensors(lambda tensor: tensor[torch.as_tensor(indices, device=tensor.device)])

    def offload(self) -> None:
        self.map_tensors(lambda tensor: tensor.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        self.map_tensors(lambda tensor: tensor.to(self.device, non_blocking=True))


def _own(tensor: torch.Tensor, heads: slice) -> torch.Tensor:
    return tensor[:, heads].clone(memory_format=torch.contiguous_format)


def cache_nbytes(cache: Cache) -> int:
    """Bytes of the storages behind a cache's tensors, of any class of cache; shared storages count once."""
    if isinstance(cache, EncoderDecoderCache):
        return cache_nbytes(cache.self_attention_cache) + cache_nbytes(cache.cross_attention_cache)
    storages = {}
    for layer in cache.layers:
        held = layer.tensors() if isinstance(layer, HandleLayer) else _tensors_in(vars(layer))
        for tensor in held:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in _tensors_in(part)] if isinstance(value, list | tuple) else []
