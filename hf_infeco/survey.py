"""
What each method could do on each layer of a model, and why not: the table that `patch` acts on and `explain` shows.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from . import compat
from .attention import FEATURES, IMPLEMENTED_ARGUMENTS, NEUTRAL_ARGUMENTS
from .attention_source import attention_code
from .innerq.cache import unsupported_reason


@dataclass(frozen=True)
class Survey:
    """
    Attributes:
        attention_refusal (`str`, *optional*): why the model's attention cannot be replaced; None if it can.
        sparse_layers (`list[int]`): layers whose attention S2O may take over.
        packed_layers (`list[int]`): layers whose cache InnerQ may take over.
        refusals (`dict[str, dict[int, str]]`): per area and layer, why not.
        num_layers (`int`): decoder layers.
    """

    attention_refusal: str | None
    sparse_layers: list[int]
    packed_layers: list[int]
    refusals: dict[str, dict[int, str]]
    num_layers: int


def survey(model: PreTrainedModel, refusal: str | None = None) -> Survey:
    """Looks at the modules and the config of a model; changes nothing. `refusal` is a reason against its attention."""
    decoder = compat.decoder_of(model)
    layers = compat.default_layers(model.config)
    modules = compat.attention_modules(decoder)
    model_refusal = _model_refusal(model, modules)
    cache_refusal = model_refusal or unsupported_reason(model.config)
    if compat.makes_its_own_cache(model):
        cache_refusal = cache_refusal or f"{type(model).__name__} makes a cache of its own"
    attention_refusal = model_refusal or refusal or _attention_refusal(model, decoder)
    refusals: dict[str, dict[int, str]] = {"s2o": {}, "innerq": {}}
    num_layers = max(len(layers), *(index + 1 for index in modules), 0) if modules else len(layers)
    for index in range(num_layers):
        layer = layers[index] if index < len(layers) else None
        missing = None if index in modules else "no self-attention module"
        window = _window(model.config, index, layer)
        if reason := attention_refusal or missing or window or _other_logits(model.config, modules[index]):
            refusals["s2o"][index] = reason
        special = None if compat.is_full_attention_layer(layer) else window or _describe(layer)
        if reason := cache_refusal or special or missing:
            refusals["innerq"][index] = reason
    return Survey(
        attention_refusal,
        [index for index in range(num_layers) if index not in refusals["s2o"]],
        [index for index in range(num_layers) if index not in refusals["innerq"]],
        refusals,
        num_layers,
    )


def _model_refusal(model: PreTrainedModel, modules: dict[int, nn.Module]) -> str | None:
    """Why nothing here is for this model at all."""
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder, and hf_infeco patches decoders"
    config = compat.text_config(model.config)
    says = [getattr(module, "is_causal", None) for module in modules.values()]
    if not getattr(config, "is_causal", True) or False in says:
        return "its attention is not causal"
    # Where the modules do not say it, models that can be an encoder too do.
    if None in says and not getattr(config, "is_decoder", True):
        return "its attention is not causal by its config (is_decoder=False)"
    return None


def _attention_refusal(model: PreTrainedModel, decoder: nn.Module) -> str | None:
    """Why the model's attention cannot be replaced by ours. Its modules share one setting: one of them is enough."""
    if not compat.can_switch_attention(decoder):
        return f"{type(decoder).__name__} does not use transformers' attention interface"
    for module in {type(module): module for module in decoder.modules()}.values():
        code, name = attention_code(module), type(module).__name__
        if unknown := sorted(code.arguments - IMPLEMENTED_ARGUMENTS - NEUTRAL_ARGUMENTS - FEATURES.keys()):
            return f"{name} hands its attention {', '.join(unknown)}, which hf_infeco does not know"
        if code.treats_sdpa_apart or code.alters_mask:
            return f"{name} makes masks of its own, for attention implementations that it knows by name"
    return None


def _window(config: PreTrainedConfig, index: int, layer: Any) -> str | None:
    """Why a layer does not attend to the whole context, whatever its cache; None if it does, or does not say."""
    kind = compat.layer_type(config, index) or ""
    window = getattr(layer, "sliding_window", None)
    if window is None and not kind.startswith(("sliding", "chunked")):
        return None
    size = window or compat.window_of(config, index)
    return f"attention within a window or chunk of {size} tokens" if size else "attention within a window"


def _other_logits(config: PreTrainedConfig, module: nn.Module) -> str | None:
    """Why S2O, which judges keys by the product with the query alone, would judge them wrongly here."""
    if cap := compat.config_value(config, "attn_logit_softcapping"):
        return f"its logits are capped at {cap}, and S2O judges keys by logits that are not"
    if "position_bias" in attention_code(module).arguments:
        return "a position bias is added to its logits, and S2O judges keys by logits without"
    return None


def _describe(layer: Any) -> str:
    if layer is None or type(layer).__name__ == "DummyLayer":
        return "no cache of its own"
    if isinstance(layer, compat.CrossAttentionLayer):
        return "cross-attention"
    return f"special cache layer {type(layer).__name__}"
