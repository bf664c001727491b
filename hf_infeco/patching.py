"""`patch` and its way back: which methods work on which layers of a model, put into effect and undone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from peft import PeftMixedModel, PeftModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from . import (
    attention,
    compat,
    innerq,  # noqa: F401 - registers its method, as the next does
    s2o,  # noqa: F401
)
from .attention import ATTENTION_NAME, switch_attention
from .config import InfecoConfig
from .edits import Edits
from .methods import registered
from .report import PatchReport
from .reporting import build_report, refused_report
from .survey import survey

logger = logging.get_logger(__name__)

STATE_ATTRIBUTE = "_infeco_state"  # on a patched model


@dataclass
class PatchState:
    """What `unpatch` needs. It lies in the model's `__dict__`, so that a deepcopy or a pickle carries it along."""

    config: InfecoConfig
    edits: Edits

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
    if compat.attention_name(compat.decoder_of(inner)) == ATTENTION_NAME:
        raise ValueError(
            f"The config of this {type(inner).__name__} is that of a patched model, or a copy of it. Unpatch that one "
            "first, build this one with copy.deepcopy of the original config, or call set_attn_implementation('sdpa')."
        )
    found = survey(inner)
    layers = {
        method: [layer.index for layer in found.layers if method.refuse(found, layer) is None]
        for method in registered()
        if getattr(config, method.name, None) is not None
    }
    state = PatchState(config, Edits())
    state.edits.set_attribute(inner, STATE_ATTRIBUTE, state)
    try:
        if any(layers.values()) and found.attention_refusal is None:
            switch_attention(inner, state.edits)
        for method, taken in layers.items():
            if taken:
                method.apply(inner, getattr(config, method.name), taken, state.edits)
    except BaseException:
        unpatch(model)
        raise
    _warn_about_nothing(inner)
    return model


def unpatch(model: nn.Module) -> nn.Module:
    """Restores the model's original behaviour, bit for bit. Harmless on a model that is not patched."""
    state = _state(_unwrap(model))
    if state is not None:
        state.edits.undo()
    return model


@contextmanager
def patched(model: nn.Module, config: InfecoConfig | None = None, **methods: Any) -> Iterator[nn.Module]:
    """
    `patch` for the length of a `with` block. On exit, exceptions included, the model is as it was before: unpatched,
    or patched with its earlier settings.
    """
    before = _state(_unwrap(model))
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
    state = _state(inner)
    if state is None:
        return build_report(survey(inner), None, num_tokens)
    now = compat.attention_name(compat.decoder_of(inner))
    is_switched_back = state.edits.attention not in (None, now)
    refusal = f"the attention implementation was set to {now!r} after patching" if is_switched_back else None
    return build_report(survey(inner, refusal), state.config, num_tokens)


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
    return build_report(survey(inner), config, num_tokens)


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


def _state(model: PreTrainedModel) -> PatchState | None:
    return vars(model).get(STATE_ATTRIBUTE)


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
    return type(config)(**{**vars(config), **methods})


def _warn_about_nothing(model: PreTrainedModel) -> None:
    """Says so if a method that was asked for is at work on no layer at all."""
    result = report(model)
    for area in (method.name for method in registered()):
        if result.status(area) <= {"unsupported"}:
            reasons = "; ".join(entry.detail for entry in result.areas if entry.area == area)
            logger.warning(f"hf_infeco.patch: {area} is not at work on {result.model}: {reasons}.")
