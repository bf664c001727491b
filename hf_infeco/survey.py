"""
What each method could do on each layer of a model, and why not: the table that `patch` acts on and `explain` shows.
"""

from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from . import compat
from .attention import PLAN_ATTRIBUTE, LayerPlan
from .config import InfecoConfig
from .innerq.cache import unsupported_reason
from .kernels.dispatch import choose
from .report import AreaReport, LayerDensity, PatchReport, S2OReport, Status, layer_pattern


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
    attention_refusal = model_refusal or refusal or _attention_refusal(model, decoder, modules)
    refusals: dict[str, dict[int, str]] = {"s2o": {}, "innerq": {}}
    for index, layer in enumerate(layers):
        special = None if compat.is_full_attention_layer(layer) else _describe(layer)
        if index not in modules:
            special = special or "no attention module"
        if reason := attention_refusal or special:
            refusals["s2o"][index] = reason
        if reason := cache_refusal or special:
            refusals["innerq"][index] = reason
    return Survey(
        attention_refusal,
        [index for index in range(len(layers)) if index not in refusals["s2o"]],
        [index for index in range(len(layers)) if index not in refusals["innerq"]],
        refusals,
        len(layers),
    )


def _model_refusal(model: PreTrainedModel, modules: dict[int, nn.Module]) -> str | None:
    """Why nothing here is for this model at all."""
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder, and hf_infeco patches decoders"
    is_causal = getattr(compat.text_config(model.config), "is_causal", True)
    if not is_causal or any(not getattr(module, "is_causal", True) for module in modules.values()):
        return "its attention is not causal"
    return None


def _attention_refusal(model: PreTrainedModel, decoder: nn.Module, modules: dict[int, nn.Module]) -> str | None:
    """Why the model's attention cannot be replaced by ours."""
    config = compat.text_config(model.config)
    if not compat.can_switch_attention(decoder):
        return f"{type(decoder).__name__} does not use transformers' attention interface"
    if getattr(config, "attn_logit_softcapping", None):
        return f"logit softcapping (attn_logit_softcapping={config.attn_logit_softcapping}) is not implemented"
    if any(getattr(module, "sinks", None) is not None for module in modules.values()):
        return "learned attention sinks are not implemented"
    return None


def _describe(layer: Any) -> str:
    if window := getattr(layer, "sliding_window", None):
        return f"attention within a window or chunk of {window} tokens"
    if type(layer).__name__ == "DummyLayer":
        return "no cache of its own"
    return f"special cache layer {type(layer).__name__}"


# ---------------------------------------------------------------- reports


def build_report(model: PreTrainedModel, config: InfecoConfig, found: Survey) -> PatchReport:
    """The report of what `config` gives on this model. Reads densities off a patched model's plans."""
    before, after = _kv_bytes_per_token(model, config, found)
    names = ("hf_infeco", "transformers", "torch")
    return PatchReport(
        model=type(model).__name__,
        areas=[*_s2o_lines(model, config, found), *_innerq_lines(model, config, found)],
        kv_bytes_per_token_before=before,
        kv_bytes_per_token_after=after,
        s2o=_density(model) if config.s2o is not None else None,
        versions={name: version(name) for name in names},
    )


def _s2o_lines(model: PreTrainedModel, config: InfecoConfig, found: Survey) -> list[AreaReport]:
    if config.s2o is None:
        return [_off("s2o", found)]
    crossover = config.s2o.crossover
    where = "where it is measured to be faster" if crossover == "auto" else f"from {crossover} tokens on"
    detail = f"sparse prefill {where}, tau={config.s2o.tau:g}; dense below"
    return _lines("s2o", "enabled", found.sparse_layers, detail, found, _backend("s2o_prefill", model))


def _innerq_lines(model: PreTrainedModel, config: InfecoConfig, found: Survey) -> list[AreaReport]:
    if config.innerq is None:
        return [_off("innerq", found)]
    bits = f"{config.innerq.bits_per_number:g} bits per number"
    if found.attention_refusal:
        # Storage works under any attention; only the gain in speed needs ours.
        detail = f"{bits}, dequantized at each step because {found.attention_refusal}"
        return _lines("innerq", "fallback", found.packed_layers, detail, found, _backend("innerq_dequantize", model))
    detail = f"{bits}, attended packed"
    return _lines("innerq", "enabled", found.packed_layers, detail, found, _backend("innerq_decode", model))


def _backend(operation: str, model: PreTrainedModel) -> str:
    """What runs on the model's device; a skeleton without weights is taken to go where the weights would."""
    device = model.device
    if device.type == "meta":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return choose(operation, device).backend


def _lines(area: str, status: Status, layers: list[int], detail: str, found: Survey, backend: str) -> list[AreaReport]:
    """One line for the layers where a method is at work, if any, and one for each reason against the rest."""
    at_work = [AreaReport(area, status, layer_pattern(layers), detail, backend)] if layers else []
    by_reason = defaultdict(list)
    for index, reason in found.refusals[area].items():
        by_reason[reason].append(index)
    refused = [AreaReport(area, "unsupported", layer_pattern(at), reason) for reason, at in by_reason.items()]
    return at_work + refused


def _off(area: str, found: Survey) -> AreaReport:
    return AreaReport(area, "off", layer_pattern(list(range(found.num_layers))), "switched off in the config")


def _kv_bytes_per_token(model: PreTrainedModel, config: InfecoConfig, found: Survey) -> tuple[float, float]:
    text = compat.text_config(model.config)
    modules = compat.attention_modules(compat.decoder_of(model))
    layers = enumerate(compat.default_layers(model.config))
    growing = [index for index, layer in layers if compat.is_full_attention_layer(layer) and index in modules]
    if not growing:
        return 0, 0
    kv_heads, key_dim, value_dim = compat.key_value_dims(text, modules[growing[0]])
    numbers = kv_heads * (key_dim + value_dim)
    plain = numbers * model.dtype.itemsize
    packed = plain if config.innerq is None else numbers * config.innerq.bits_per_number / 8
    return plain * len(growing), sum(packed if index in found.packed_layers else plain for index in growing)


def _density(model: PreTrainedModel) -> S2OReport:
    modules = compat.attention_modules(compat.decoder_of(model))
    plans: dict[int, LayerPlan] = {
        index: vars(module)[PLAN_ATTRIBUTE] for index, module in modules.items() if PLAN_ATTRIBUTE in vars(module)
    }
    return S2OReport.of(
        {
            index: LayerDensity(
                int(plan.stats.visited_pairs), plan.stats.causal_pairs, float(plan.stats.missed_mass), plan.stats.rows
            )
            for index, plan in plans.items()
            if plan.s2o is not None
        }
    )
