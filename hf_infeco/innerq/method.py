"""InnerQ as a method of `patch`: which layers it takes, the cache that it has a model run on, and what it reports."""

import os
from functools import partial
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from .. import compat
from ..attention_source import attention_code
from ..caching import last_cache, switch_cache
from ..edits import Edits
from ..kernels.dispatch import choose
from ..methods import Method, Outcome
from ..plan import plan_of
from ..survey import Layer, Survey
from .cache import InnerQCache, unsupported_reason
from .config import InnerQConfig


class InnerQMethod(Method):
    name: ClassVar[str] = "innerq"

    def refuse(self, found: Survey, layer: Layer) -> str | None:
        caches = (each.cache for each in found.layers)
        if reason := found.refusal or unsupported_reason(found.model.config, caches):
            return reason
        if compat.makes_its_own_cache(found.model):
            return f"{type(found.model).__name__} makes a cache of its own"
        if not compat.is_full_attention_layer(layer.cache):
            return layer.window or _describe(layer.cache)
        return None if layer.attention is not None else "no self-attention module"

    def apply(self, model: PreTrainedModel, settings: InnerQConfig, layers: list[int], edits: Edits) -> None:
        switch_cache(model, partial(InnerQCache, innerq=settings), edits)

    def outcome(self, found: Survey, layer: Layer, settings: InnerQConfig) -> Outcome:
        cache = last_cache(found.model)
        if cache is not None and cache != InnerQCache.__name__:
            return Outcome("fallback", f"the last forward ran on a {cache}, which is not packed", "torch")
        bits = _bits(settings, found.longest)
        if reason := _unpacking(found, layer):
            backend = choose("innerq_dequantize", found.device).backend
            return Outcome("fallback", f"{bits}, dequantized at each step because {reason}", backend)
        backend = choose("innerq_decode", found.device).backend
        # torch's own threads spin after each of its operations, on the cores that ours want (docs/innerq.md).
        waits = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
        spins = backend == "cpu" and torch.get_num_threads() > 1 and not waits
        spinning = "; faster with OMP_WAIT_POLICY=passive set before Python starts" if spins else ""
        return Outcome("enabled", f"{bits}, attended packed{spinning}", backend)

    def packing(self, settings: InnerQConfig) -> InnerQConfig:
        return settings


def _bits(settings: InnerQConfig, longest: int | None) -> str:
    """What is stored, in a sequence of `longest` tokens."""
    if longest is not None and settings.packed_tokens(longest) == 0:
        return f"exact, because its windows cover the {longest} tokens that the model takes"
    bits = f"{settings.bits_per_number:g} bits per number"
    if settings.bits_per_number < (default := InnerQConfig().bits_per_number):
        bits += f" (which cost real models more accuracy than the default's {default:g}: docs/real.md)"
    return bits


def _unpacking(found: Survey, layer: Layer) -> str | None:
    """Why a layer is dequantized at each step: storage works under any attention, the gain in speed needs ours."""
    attention: Any = layer.attention  # there, or the layer would have been refused
    code, name, plan = attention_code(attention), type(attention).__name__, plan_of(attention)
    if found.attention_refusal is not None:
        return found.attention_refusal
    if code.alters_cache:
        return f"{name} rearranges what the cache returns"
    if "position_bias" in code.arguments:
        return f"{name} adds a position bias to its logits"
    if plan is not None and plan.unpacked_calls and not plan.packed_calls:
        return "its decode steps so far asked for more than a causal or padding mask"
    return None


def _describe(cache: Any) -> str:
    """A cache layer that InnerQ leaves alone."""
    if cache is None or type(cache).__name__ == "DummyLayer":
        return "no cache of its own"
    if isinstance(cache, compat.CrossAttentionLayer):
        return "cross-attention"
    return f"special cache layer {type(cache).__name__}"
