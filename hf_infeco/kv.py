"""
What travels from a cache layer to our attention: `KVHandle`, a tensor that dequantizes only if somebody looks inside,
and `HandleLayer`, the base of cache layers that answer `update` with handles. `cache_nbytes` weighs any cache.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._pytree import tree_map
from transformers import Cache, EncoderDecoderCache
from transformers.cache_utils import CacheLayerMixin

from . import compat


class KVView:
    """
    What one `update` call attends to: a picture of the layer at that moment, the new tokens included.

    A view stays valid while its layer moves on, because layers append and never overwrite. Subclasses say how the
    tokens are stored by defining `dequantize`, and how they are attended as they are, if they can be, by `attend`.

    Args:
        num_tokens (`int`): keys in the view.
        key (`torch.Tensor` `[B, Hkv, n, D]`), value (`torch.Tensor` `[B, Hkv, n, Dv]`): samples of shape, dtype,
        device.
    """

    def __init__(self, num_tokens: int, key: torch.Tensor, value: torch.Tensor):
        self.num_tokens = num_tokens
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
            key_mask (`torch.Tensor` of bool `[B, num_tokens]`, *optional*): hides padding.
            sinks (`torch.Tensor` `[H]`, *optional*): learned logits without a value.
            softcap (`float`, *optional*): logits become softcap * tanh(logits / softcap).
        """
        return None

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`dequantize`, once per view."""
        if self._tensors is None:
            self._tensors = self.dequantize()
        return self._tensors


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

    def __repr__(self) -> str:
        return f"KVHandle({'key' if self.which == 0 else 'value'}, shape={tuple(self.shape)}, dtype={self.dtype})"

    # Operations on a handle give plain tensors, never handles.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(plain, (args, kwargs or {}))
        return func(*args, **kwargs)


def view_behind(key: torch.Tensor, value: torch.Tensor) -> KVView | None:
    """
    The view whose keys and values these are, untouched; None for anything else, such as values that a model has
    rearranged behind the cache.
    """
    are_handles = isinstance(key, KVHandle) and isinstance(value, KVHandle)
    if not are_handles or key.view_of is not value.view_of or (key.which, value.which) != (0, 1):
        return None
    return key.view_of


def plain(value: Any) -> Any:
    """The dequantized tensor behind a handle; anything else as it is."""
    return value.view_of.tensors()[value.which] if isinstance(value, KVHandle) else value


class HandleLayer(CacheLayerMixin):
    """
    Base of our cache layers: the parts of transformers' layer protocol that do not depend on how tokens are stored.

    Subclasses hold `num_tokens`, and define `update`, `full_tensors`, `replace_tensors`, `map_tensors`, `tensors`,
    `reset` and `remove_last`.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = True
    supports_early_init = True

    def __init__(self) -> None:
        # Not the mixin's: it would assign `keys` and `values`, which are views on packed data here.
        self.is_initialized = False
        self.num_tokens = 0

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
        """Forgets the newest `num_tokens` tokens; `0 < num_tokens <= self.num_tokens`."""

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

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_tokens + query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.14

    def crop(self, tokens_to_remove: int) -> None:
        """Removes tokens from the end; the argument's meaning is that of the installed transformers."""
        count = compat.tokens_to_remove(tokens_to_remove, self.num_tokens)
        if count:
            self.remove_last(count)

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
