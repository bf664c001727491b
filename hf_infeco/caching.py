"""
Which cache a patched model runs on: a method's where the user passes none, from `generate` and in a bare forward. What
it really was is noted at every forward, for the report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from . import compat
from .edits import Edits

WATCH_ATTRIBUTE = "_infeco_cache"  # on the decoder, which is all that the forward hook is given


@runtime_checkable
class ToldOfPadding(Protocol):
    """A cache that wants to know where the rows of a left-padded batch begin."""

    def set_left_padding(self, attention_mask: torch.Tensor | None) -> None: ...


@dataclass
class CacheWatch:
    """
    Attributes:
        make: `make(config, offloading=..., offload_only_non_sliding=...)` gives an empty cache; a function of a module
            or a partial of one, so that a pickle of the model carries it along.
        names (`tuple[str, ...]`): arguments of the decoder's forward, in order.
        argument (`str`): which of them is the cache.
        last (`str`, *optional*): class of the cache that the last forward with one ran on.
    """

    make: Callable[..., Cache]
    names: tuple[str, ...]
    argument: str
    last: str | None = None


def switch_cache(model: PreTrainedModel, make: Callable[..., Cache], edits: Edits) -> None:
    """Has this model run on what `CacheWatch.make` gives by default."""
    decoder = compat.decoder_of(model)
    forward = type(decoder).forward
    watch = CacheWatch(make, compat.argument_names(forward)[1:], compat.cache_argument(forward))
    edits.set_attribute(decoder, WATCH_ATTRIBUTE, watch)
    if hasattr(type(model), compat.PREPARE_CACHE):  # a base model without a head has no generate
        edits.set_attribute(model, compat.PREPARE_CACHE, compat.PrepareCache(model, _new_cache))
    edits.add_forward_pre_hook(decoder, _on_forward)


def last_cache(model: PreTrainedModel) -> str | None:
    """Class name of the cache of the last forward; None before the first, and where nothing was switched."""
    watch: CacheWatch | None = getattr(compat.decoder_of(model), WATCH_ATTRIBUTE, None)
    return None if watch is None else watch.last


def _new_cache(model: PreTrainedModel, default: Cache) -> Cache:
    watch: CacheWatch = getattr(compat.decoder_of(model), WATCH_ATTRIBUTE)
    return watch.make(model.config, **compat.offloading_of(default))


def _on_forward(decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """
    Forward pre-hook: gives a bare `model(input_ids, use_cache=True)` our cache, where the user passed none, and tells
    the cache of padding, of which it would not hear otherwise.
    """
    watch: CacheWatch = getattr(decoder, WATCH_ATTRIBUTE)
    given = {**dict(zip(watch.names, args, strict=False)), **kwargs}
    cache = next((given[name] for name in compat.CACHE_NAMES if given.get(name) is not None), None)
    use_cache = given.get("use_cache")
    use_cache = getattr(decoder.config, "use_cache", False) if use_cache is None else use_cache
    # In training nothing reads the cache: packing it would be work for nothing.
    if cache is None and use_cache and not decoder.training and watch.argument not in watch.names[: len(args)]:
        cache = watch.make(decoder.config)
        kwargs = {**kwargs, watch.argument: cache}
    if cache is not None:
        watch.last = type(cache).__name__
    if isinstance(cache, ToldOfPadding):
        mask = given.get("attention_mask")
        cache.set_left_padding(mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None)
    return args, kwargs
