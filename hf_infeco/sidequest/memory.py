"""Spans of tokens dropped from a cache."""

import copy
from collections.abc import Callable, Iterable

import torch
from transformers import Cache

from ..cache_operations import fork_cache as fork
from ..cache_operations import keep_tokens, rows_and_positions
from ..compat import is_full_attention_layer, is_window_layer
from ..dense_layer import DenseLayer

__all__ = ["Span", "evict", "fork", "keep_slots"]

Span = tuple[int, int]  # first token and the one behind the last, by position


def evict(cache: Cache, spans: Iterable[Span]) -> None:
    """
    Drops the tokens of some spans from all rows of a cache, and frees their memory.

    Other tokens keep their positions, keys and values: nothing is computed again, and the next token gets the position
    that it would have had. Sliding-window layers are left alone. See `hf_infeco.keep_tokens` for what an `InnerQCache`
    frees.

    Args:
        cache (`Cache`): an `InnerQCache` or `DynamicCache`; changed in place.
        spans (`Iterable[tuple[int, int]]`): first position and the one behind the last.

    Raises:
        ValueError: for a span that is not within the tokens seen, and for a cache that cannot drop tokens.
    """
    rows, seen = rows_and_positions(cache) or (1, cache.get_seq_length())
    mask = torch.ones(rows, seen, dtype=torch.bool, device="cpu")
    for begin, end in spans:
        if not 0 <= begin <= end <= seen:
            raise ValueError(f"The span {(begin, end)} is not within the {seen} tokens that this cache has seen.")
        mask[:, begin:end] = False
    if not mask.all():
        keep_tokens(cache, mask)


def keep_slots(cache: Cache, choose: Callable[[int, torch.Tensor], torch.Tensor]) -> None:
    """
    Drops tokens from a dense cache of one row, in each layer other ones: `choose(layer, key [Hkv, slots, D])` says
    which slots stay, bool `[slots]`, as many in every layer. Window layers are left alone.
    """
    for index, layer in enumerate(cache.layers):
        if is_window_layer(layer) or not layer.get_seq_length():
            continue
        if not (is_full_attention_layer(layer) or isinstance(layer, DenseLayer)):
            raise ValueError(
                f"Layer {index} of this cache is a {type(layer).__name__}, whose layers cannot drop different tokens: "
                "use a policy that drops cursors, or a dense cache (hf_infeco.unpatch)."
            )
        slots = choose(index, layer.keys[0])
        seen, held = layer.get_seq_length(), layer.keys.shape[2]
        kept = getattr(layer, "kept", None)
        position = (
            torch.arange(seen, device=slots.device)
            if kept is None
            else kept.positions(held - len(kept.position[0]))[0]
        )
        mask = torch.zeros(1, seen, dtype=torch.bool, device=slots.device)
        mask[0, position[slots].long()] = True
        single = copy.copy(cache)
        single.layers = [layer]
        keep_tokens(single, mask)
        cache.layers[index] = single.layers[0]
