"""What a model is made of, as far as methods ask: its layers, and why its attention cannot be replaced."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from . import compat
from .attention import FEATURES, IMPLEMENTED_ARGUMENTS, NEUTRAL_ARGUMENTS
from .attention_source import attention_code


@dataclass(frozen=True)
class Layer:
    """
    One decoder layer.

    Attributes:
        index (`int`): its number.
        attention (`nn.Module`, *optional*): its self-attention; None if it has none.
        cache (*optional*): the cache layer that transformers would build for it.
        window (`str`, *optional*): why it does not attend to the whole context, whatever its cache; None if it does.
    """

    index: int
    attention: nn.Module | None
    cache: Any
    window: str | None


@dataclass(frozen=True)
class Survey:
    """
    Attributes:
        model (`PreTrainedModel`): the model, unchanged.
        layers (`list[Layer]`): its decoder layers.
        refusal (`str`, *optional*): why nothing here is for this model; None if something is.
        attention_refusal (`str`, *optional*): why its attention cannot be replaced; None if it can.
    """

    model: PreTrainedModel
    layers: list[Layer]
    refusal: str | None
    attention_refusal: str | None

    @property
    def device(self) -> torch.device:
        """The model's; a skeleton without weights is taken to go where the weights would."""
        if self.model.device.type != "meta":
            return self.model.device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def longest(self) -> int | None:
        """Tokens that the model takes; None where its config does not say."""
        return compat.max_positions(self.model.config)


def survey(model: PreTrainedModel, refusal: str | None = None) -> Survey:
    """Looks at the modules and the config of a model; changes nothing. `refusal` is a reason against its attention."""
    decoder = compat.decoder_of(model)
    caches = compat.default_layers(model.config)
    modules = compat.attention_modules(decoder)
    model_refusal = _model_refusal(model, modules)
    layers = []
    for index in range(max(len(caches), *(index + 1 for index in modules), 0) if modules else len(caches)):
        cache = caches[index] if index < len(caches) else None
        layers.append(Layer(index, modules.get(index), cache, _window(model.config, index, cache)))
    return Survey(model, layers, model_refusal, model_refusal or refusal or _attention_refusal(model, decoder))


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


def _window(config: PreTrainedConfig, index: int, cache: Any) -> str | None:
    """Why a layer does not attend to the whole context, whatever its cache; None if it does, or does not say."""
    kind = compat.layer_type(config, index) or ""
    window = getattr(cache, "sliding_window", None)
    if window is None and not kind.startswith(("sliding", "chunked")):
        return None
    size = window or compat.window_of(config, index)
    return f"attention within a window or chunk of {size} tokens" if size else "attention within a window"
