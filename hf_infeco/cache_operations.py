"""
Operations on the tokens of a whole cache, InnerQ's or transformers' own: drop some, fork it, take heads and join them.

They go layer by layer. Our layers know them as methods; a full-attention layer of a `DynamicCache` becomes a
`DenseLayer` with the first token that is dropped from it.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Cache, EncoderDecoderCache

from . import compat
from .dense_layer import DenseLayer
from .kv import HandleLayer


def keep_tokens(cache: Cache, mask: torch.Tensor) -> None:
    """
    Drops tokens from a cache: later attention sees the others and nothing else, and their memory is freed.

    Positions stay what they were: `cache.get_seq_length()` counts the dropped tokens too, so the next token gets the
    position that it would have had, and input ids, attention masks and later calls of this function go on speaking of
    all tokens from the first one on. What rows hold may differ; a model patched by hf_infeco masks the rest by itself,
    any other one needs `held_mask`.

    A `DynamicCache` frees everything that no row holds, after shifting each row's tokens to its end. An `InnerQCache`
    does the same with whole tiles of 32 packed tokens: in a tile of which a token is left, the others are masked.
    Sliding-window layers are left alone: what was dropped stays visible to them until their window has passed it.

    Args:
        cache (`Cache`): an `InnerQCache` or `DynamicCache`, or any with their layers; changed in place.
        mask (`torch.Tensor` of bool, `[B, cache.get_seq_length()]`): True for tokens to keep, by their place in
            `input_ids`, padding included (for which False is best). What is gone already stays gone.

    Raises:
        ValueError: for a mask of another shape or dtype, and for a cache with layers that cannot drop tokens.
    """
    expected = rows_and_positions(cache)
    if mask.dtype != torch.bool or (expected is not None and tuple(mask.shape) != expected):
        raise ValueError(
            f"mask is {mask.dtype} {list(mask.shape)}: it has to be torch.bool {list(expected or ())}, with an entry "
            "for each row and each position that the cache has seen, whether it still holds it or not."
        )
    first = None
    for index, layer in enumerate(_droppable(cache)):
        if layer is None:
            continue
        layer.keep(mask.to(layer.device))
        if layer.kept is not None:
            cache.layers[index], first = layer, first or layer.kept
            # Layers nearly always hold the same tokens in the same slots: then they hold one tensor that says so.
            if layer.kept.position.shape == first.position.shape and torch.equal(layer.kept.position, first.position):
                layer.kept = first


def held_mask(cache: Cache, attention_mask: torch.Tensor) -> torch.Tensor:
    """
    The attention mask that a model which is not patched needs after `keep_tokens`, where rows hold different numbers
    of tokens or were padded. `generate` goes on with it, and needs the `position_ids` of its inputs beside it.

    Args:
        attention_mask (`torch.Tensor` `[B, tokens]`): of all tokens from the first one on, the call's own included.

    Returns:
        `torch.Tensor` `[B, tokens]`, whose last columns are what the cache holds and the call's own tokens; the ones
        in front of them mean nothing. The mask itself if nothing was dropped.

    Raises:
        ValueError: if the cache also has sliding-window layers, which would need another mask.
    """
    kept = next((layer.kept for layer in _layers(cache) if isinstance(layer, HandleLayer) and layer.kept), None)
    if kept is None:
        return attention_mask
    if any(map(compat.is_window_layer, cache.layers)):
        raise ValueError(
            "This cache has sliding-window layers, to which the mask of its other layers means something else: patch "
            "the model with hf_infeco.patch, and no mask has to be changed."
        )
    kept = kept.aligned
    held = kept.in_slots(attention_mask != 0, attention_mask.shape[1] - kept.num_tokens)
    front = attention_mask[:, : attention_mask.shape[1] - held.shape[1]]
    return torch.cat([front, held.to(attention_mask.dtype)], 1)


def fork_cache(cache: Cache) -> Cache:
    """
    A second cache with the same tokens, in the same memory. Either may go on (new tokens, `crop`, `keep_tokens`,
    another order of rows) and the other does not notice.

    A fork of an `InnerQCache` keeps its own new tokens exact until they are a sixteenth of the packed ones: only then
    are the packed ones copied. The cache that it was made from goes on as if there were no fork. Layers that are
    written in place, such as those of a `StaticCache`, are copied. In older versions of transformers `reset()` writes
    zeros into the tensors of a `DynamicCache`, also into shared ones: make a new cache there.
    """
    return _like(cache, [_fork(layer) for layer in _layers(cache)])


def select_heads(cache: Cache, heads: slice) -> Cache:
    """
    A cache with some of the KV heads of each layer, in memory of its own; what is packed is not unpacked. Tensor
    parallelism's rank r of n takes `slice(r * H // n, (r + 1) * H // n)` of H KV heads.

    Raises:
        ValueError: for a slice without heads, and for a cache whose layers hold more than keys and values.
    """
    return _like(cache, [_heads(index, layer, heads) for index, layer in enumerate(_layers(cache))])


def join_heads(caches: Sequence[Cache]) -> Cache:
    """
    Inverse of `select_heads`: one cache with the KV heads of all, in order.

    Raises:
        ValueError: if they are caches of different kinds, or do not hold the same tokens stored in the same way.
    """
    every = [_layers(cache) for cache in caches]
    kinds = {(type(cache), tuple(map(type, layers))) for cache, layers in zip(caches, every, strict=True)}
    if len(kinds) != 1:
        raise ValueError(f"{len(caches)} caches of {len(kinds)} kinds cannot be joined: pass those of one model.")
    return _like(caches[0], [_join(index, layers) for index, layers in enumerate(zip(*every, strict=True))])


# ---------------------------------------------------------------- layers


def _layers(cache: Cache) -> list[Any]:
    if isinstance(cache, EncoderDecoderCache):
        raise ValueError(
            "The cache of an encoder-decoder is two: pass its `self_attention_cache`, whose tokens are the decoder's."
        )
    return cache.layers


def rows_and_positions(cache: Cache) -> tuple[int, int] | None:
    """Rows, and positions seen, of the first layer that keeps all tokens; None as long as there are none."""
    for layer in _layers(cache):
        if (isinstance(layer, HandleLayer) or compat.is_full_attention_layer(layer)) and layer.get_seq_length():
            held = next(iter(layer.tensors())) if isinstance(layer, HandleLayer) else layer.keys
            return len(held), layer.get_seq_length()
    return None


def _droppable(cache: Cache) -> list[HandleLayer | None]:
    """The layers as such that tokens can be dropped from; None for empty ones and those that are left alone."""
    found: list[HandleLayer | None] = []
    for index, layer in enumerate(cache.layers):
        if compat.is_full_attention_layer(layer) and layer.get_seq_length():
            found.append(DenseLayer(layer.keys, layer.values))
        elif isinstance(layer, HandleLayer) and layer.num_tokens:
            found.append(layer)
        elif _is_known(layer):
            found.append(None)
        else:
            raise ValueError(
                f"Layer {index} of this cache is a {type(layer).__name__}, from which no single tokens can be "
                "dropped: run the shorter text anew."
            )
    if found and not any(
        isinstance(layer, HandleLayer) or compat.is_full_attention_layer(layer) for layer in cache.layers
    ):
        raise ValueError("All layers of this cache are sliding windows, which forget by themselves: nothing to drop.")
    return found


def _is_known(layer: Any) -> bool:
    """Whether a layer holds keys and values of tokens, or nothing, and is not written in place."""
    is_dense = compat.is_full_attention_layer(layer) or compat.is_window_layer(layer)
    return is_dense or isinstance(layer, HandleLayer) or compat.is_placeholder_layer(layer)


def _fork(layer: Any) -> Any:
    if isinstance(layer, HandleLayer):
        return layer.fork()
    return copy.copy(layer) if _is_known(layer) else copy.deepcopy(layer)


def _heads(index: int, layer: Any, heads: slice) -> Any:
    _refuse_other(index, layer)
    held = next(iter(layer.tensors()), None) if isinstance(layer, HandleLayer) else getattr(layer, "keys", None)
    if held is not None and held.ndim == 4 and not range(held.shape[1])[heads]:
        raise ValueError(f"{heads} takes none of the {held.shape[1]} KV heads of layer {index}.")
    if isinstance(layer, HandleLayer):
        return layer.heads(heads)
    return _with_tensors(layer, lambda name: getattr(layer, name)[:, heads].clone())


def _join(index: int, layers: Sequence[Any]) -> Any:
    _refuse_other(index, layers[0])
    if isinstance(layers[0], HandleLayer):
        return type(layers[0]).join(layers)
    if len({layer.get_seq_length() for layer in layers if not compat.is_placeholder_layer(layer)}) > 1:
        raise ValueError(
            f"The parts of layer {index} do not hold the same tokens: join what select_heads made of one cache."
        )
    return _with_tensors(layers[0], lambda name: torch.cat([getattr(layer, name) for layer in layers], 1))


def _refuse_other(index: int, layer: Any) -> None:
    if not _is_known(layer):
        raise ValueError(
            f"Layer {index} of this cache is a {type(layer).__name__}, of which the heads cannot be told apart: only "
            "layers of plain keys and values and InnerQ's can be cut and joined."
        )


def _with_tensors(layer: Any, tensor: Callable[[str], torch.Tensor]) -> Any:
    """A copy of one of transformers' layers with other keys and values, if it has any."""
    layer = copy.copy(layer)
    if getattr(layer, "is_initialized", False):
        layer.keys, layer.values = tensor("keys"), tensor("values")
    return layer


def _like(cache: Cache, layers: list[Any]) -> Cache:
    """A cache of the same kind and settings with other layers."""
    twin = copy.copy(cache)
    twin.layers = layers
    return twin
