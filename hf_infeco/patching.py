"""
`patch` and its way back. The only file that changes a model, and it changes the instance it is given, nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from peft import PeftMixedModel, PeftModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from . import attention, compat
from .attention import ATTENTION_NAME, PLAN_ATTRIBUTE, LayerPlan
from .caching import restore_cache, switch_cache
from .config import InfecoConfig
from .patch_report import PatchReport
from .reporting import build_report, refused_report
from .survey import Survey, survey

logger = logging.get_logger(__name__)

STATE_ATTRIBUTE = "_infeco_state"  # on a patched model


@dataclass
class PatchState:
    """What `unpatch` needs. It lies in the model's `__dict__`, so that a deepcopy or a pickle carries it along."""

    config: InfecoConfig
    survey: Survey
    original_attention: str
    switches_attention: bool

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        attention.register()  # unpickled in a process that may not have patched anything yet


def patch(model: nn.Module, config: InfecoConfig | None = None, **methods: Any) -> nn.Module:
    """
    Makes a loaded decoder LM prefill with S2O and cache with InnerQ. This instance only; `unpatch` restores it.

    Patching again replaces the settings. What a model does not support is left as it was and reported, see `report`.
    The attention implementation is an entry of the model's config: models that share one config object share it too.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the model, on any device and in any dtype.
        config (`InfecoConfig`, *optional*): what to enable; the default enables everything with defaults.
        methods: shortcuts for fields of the config: `patch(model, s2o=False, innerq="small")`. Each takes a config, a
            dict of its fields, a preset's name, True or False, and wins over `config`.

    Returns:
        The same object.

    Raises:
        TypeError: if `model` is no transformers model.
        ValueError: for a wrong setting, or a config that a patched model shares. Nothing is changed then.
    """
    compat.check_version()
    inner = _unwrap(model)
    config = _merge(config, methods)
    unpatch(model)
    found = survey(inner)
    original = compat.decoder_of(inner).config._attn_implementation
    if original == ATTENTION_NAME:
        raise ValueError(
            f"The config of this {type(inner).__name__} is that of a patched model, or a copy of it. Unpatch that one "
            "first, build this one with copy.deepcopy of the original config, or call set_attn_implementation('sdpa')."
        )
    sparse = config.s2o is not None and bool(found.sparse_layers)
    packed = config.innerq is not None and bool(found.packed_layers)
    switches_attention = (sparse or packed) and found.attention_refusal is None
    # The state comes first, so that whatever fails below can be taken back.
    setattr(inner, STATE_ATTRIBUTE, PatchState(config, found, original, switches_attention))
    try:
        if switches_attention:
            _switch_attention(inner, config, found)
        if packed:
            switch_cache(inner, config.innerq)
    except BaseException:
        unpatch(model)
        raise
    _warn_about_nothing(inner)
    return model


def unpatch(model: nn.Module) -> nn.Module:
    """Restores the model's original behaviour, bit for bit. Harmless on a model that is not patched."""
    inner = _unwrap(model)
    state: PatchState | None = vars(inner).pop(STATE_ATTRIBUTE, None)
    if state is None:
        return model
    decoder = compat.decoder_of(inner)
    # An implementation that the user has chosen since is theirs to keep.
    if state.switches_attention and decoder.config._attn_implementation == ATTENTION_NAME:
        decoder.set_attn_implementation(state.original_attention)
    for module in compat.self_attention(decoder):
        vars(module).pop(PLAN_ATTRIBUTE, None)
    restore_cache(inner)
    return model


@contextmanager
def patched(model: nn.Module, config: InfecoConfig | None = None, **methods: Any) -> Iterator[nn.Module]:
    """
    `patch` for the length of a `with` block. On exit, exceptions included, the model is as it was before: unpatched,
    or patched with its earlier settings.
    """
    before: PatchState | None = vars(_unwrap(model)).get(STATE_ATTRIBUTE)
    try:
        patch(model, config, **methods)
        yield model
    finally:
        if before is None:
            unpatch(model)
        else:
            patch(model, before.config)


def report(model: nn.Module, num_tokens: int | None = None) -> PatchReport:
    """
    What `patch` enabled on this model, what fell back and why, by what has run so far. An unpatched model reports
    everything as off. With `num_tokens`, also what the cache of a sequence of that length weighs.
    """
    inner = _unwrap(model)
    state: PatchState | None = vars(inner).get(STATE_ATTRIBUTE)
    if state is None:
        return build_report(inner, InfecoConfig(s2o=None, innerq=None), survey(inner), num_tokens)
    found, now = state.survey, compat.decoder_of(inner).config._attn_implementation
    if state.switches_attention and now != ATTENTION_NAME:
        found = survey(inner, refusal=f"the attention implementation was set to {now!r} after patching")
    return build_report(inner, state.config, found, num_tokens)


def explain(
    model_or_config: nn.Module | PreTrainedConfig,
    config: InfecoConfig | None = None,
    *,
    num_tokens: int | None = None,
    **methods: Any,
) -> PatchReport:
    """
    The report that `patch` with these arguments would lead to, without touching anything. Needs no weights. With
    `num_tokens`, also what the cache of a sequence of that length would weigh.
    """
    config = _merge(config, methods)
    if not isinstance(model_or_config, PreTrainedConfig):
        inner = _unwrap(model_or_config)
    else:
        try:
            inner = compat.skeleton(model_or_config)
        except ValueError as error:
            return refused_report(model_or_config, str(error))
    return build_report(inner, config, survey(inner), num_tokens)


# ---------------------------------------------------------------- the pieces of patch


def _unwrap(model: Any) -> PreTrainedModel:
    inner = model
    if isinstance(model, PeftModel):
        inner = model.get_base_model()
    elif isinstance(model, PeftMixedModel):
        inner = model.base_model.model
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(
            "hf_infeco patches transformers models (PreTrainedModel) and PEFT models around them, not "
            f"{type(model).__name__}. Pass the model itself: the inner one of a compiled or distributed wrapper, "
            "`pipe.model` of a pipeline."
        )
    return inner


def _merge(config: InfecoConfig | None, methods: dict[str, Any]) -> InfecoConfig:
    config = InfecoConfig() if config is None else config
    if not isinstance(config, InfecoConfig):
        raise TypeError(
            f"config must be an InfecoConfig, not {type(config).__name__}. For one method's settings use a keyword: "
            "patch(model, s2o=S2OConfig(...)) or patch(model, innerq='small')."
        )
    known = set(vars(config))
    if unknown := sorted(set(methods) - known):
        raise ValueError(f"{unknown} name no method that patch() knows: use {sorted(known)}.")
    return InfecoConfig(**{**vars(config), **methods})


def _switch_attention(model: PreTrainedModel, config: InfecoConfig, found: Survey) -> None:
    """Points the decoder's attention to ours and hangs the plans on its modules."""
    attention.register()
    decoder = compat.decoder_of(model)
    decoder.set_attn_implementation(ATTENTION_NAME)
    if decoder.config._attn_implementation != ATTENTION_NAME:
        raise RuntimeError(
            f"{type(decoder).__name__} ignored set_attn_implementation({ATTENTION_NAME!r}) and is unchanged. "
            f"Please report the model; its cache can be quantized by passing {compat.CACHE_NAME}=InnerQCache(config)."
        )
    modules = compat.attention_modules(decoder)
    sparse = [modules[index] for index in found.sparse_layers]
    for module in compat.self_attention(decoder):
        is_sparse = any(module is each for each in sparse)
        setattr(module, PLAN_ATTRIBUTE, LayerPlan(s2o=config.s2o if is_sparse else None))


def _warn_about_nothing(model: PreTrainedModel) -> None:
    """Says so if a method that was asked for is at work on no layer at all."""
    result = report(model)
    for area in ("s2o", "innerq"):
        if result.status(area) <= {"unsupported"}:
            reasons = "; ".join(entry.detail for entry in result.areas if entry.area == area)
            logger.warning(f"hf_infeco.patch: {area} is not at work on {result.model}: {reasons}.")
