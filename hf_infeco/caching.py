"""
Which cache a patched model runs on: ours where the user passes none, from `generate` and in a bare forward. What it
really was is noted at every forward, for the report.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from . import compat
from .innerq.cache import InnerQCache
from .innerq.config import InnerQConfig

WATCH_ATTRIBUTE = "_infeco_cache"  # on the decoder, which is all that the forward hook is given


@dataclass
class CacheWatch:
    """
    Attributes:
        innerq (`InnerQConfig`): settings of the caches to make.
        names (`tuple[str, ...]`): arguments of the decoder's forward, in order.
        argument (`str`): which of them is the cache.
        last (`str`, *optional*): class of the cache that the last forward with one ran on.
    """

    innerq: InnerQConfig
    names: tuple[str, ...]
    argument: str
    last: str | None = None


def switch_cache(model: PreTrainedModel, innerq: InnerQConfig) -> None:
    """Makes an `InnerQCache` this model's default cache."""
    decoder = compat.decoder_of(model)
    forward = type(decoder).forward
    watch = CacheWatch(innerq, compat.argument_names(forward)[1:], compat.cache_argument(forward))
    setattr(decoder, WATCH_ATTRIBUTE, watch)
    compat.replace_generation_cache(model, _new_cache)
    decoder.register_forward_pre_hook(_on_forward, with_kwargs=True)


def restore_cache(model: PreTrainedModel) -> None:
    """Undoes `switch_cache`; harmless where nothing was switched."""
    decoder = compat.decoder_of(model)
    vars(decoder).pop(WATCH_ATTRIBUTE, None)
    compat.restore_generation_cache(model)
    compat.remove_forward_pre_hook(decoder, _on_forward)


def last_cache(model: PreTrainedModel) -> str | None:
    """Class name of the cache of the last forward; None before the first, and where nothing was switched."""
    watch: CacheWatch | None = getattr(compat.decoder_of(model), WATCH_ATTRIBUTE, None)
    return None if watch is None else watch.last


def _new_cache(model: PreTrainedModel, default: Cache) -> InnerQCache:
    watch: CacheWatch = getattr(compat.decoder_of(model), WATCH_ATTRIBUTE)
    return InnerQCache(model.config, watch.innerq, **compat.offloading_of(default))


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
        cache = InnerQCache(decoder.config, watch.innerq)
        kwargs = {**kwargs, watch.argument: cache}
    if cache is not None:
        watch.last = type(cache).__name__
    if isinstance(cache, InnerQCache):
        mask = given.get("attention_mask")
        cache.set_left_padding(mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None)
    return args, kwargs
