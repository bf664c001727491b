"""The report of a model: what its survey promises, and where it has run, what it really did."""

import os
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from . import compat
from .attention import PLAN_ATTRIBUTE, LayerPlan
from .attention_source import attention_code
from .caching import last_cache
from .config import METHODS, InfecoConfig
from .innerq.cache import InnerQCache
from .innerq.config import InnerQConfig
from .kernels.dispatch import choose
from .patch_report import AreaReport, LayerDensity, PatchReport, S2OReport, Status, layer_pattern
from .s2o.config import S2OConfig
from .s2o.crossover import NEVER, Crossover, known
from .survey import Survey


def build_report(
    model: PreTrainedModel, config: InfecoConfig, found: Survey, num_tokens: int | None = None
) -> PatchReport:
    """
    The report of what `config` gives on this model. What a patched model has done so far is read off its plans.

    Raises:
        ValueError: for a number of tokens below 1.
    """
    if num_tokens is not None and num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens} is no length of a sequence: pass 1 or more, or None.")
    sizes = _Sizes(model, config, found)
    return PatchReport(
        model=type(model).__name__,
        areas=[*_s2o_lines(model, config, found), *_innerq_lines(model, config, found)],
        kv_bytes_per_token_before=sizes.per_token(packed=False),
        kv_bytes_per_token_after=sizes.per_token(packed=True),
        num_tokens=num_tokens,
        kv_bytes_before=num_tokens and sizes.at(num_tokens, packed=False),
        kv_bytes_after=num_tokens and sizes.at(num_tokens, packed=True),
        s2o=_density(model) if config.s2o is not None else None,
        versions=_versions(),
    )


def refused_report(config: PreTrainedConfig, reason: str) -> PatchReport:
    """The report on a config of which there is no model to look at."""
    areas = [AreaReport(area, "unsupported", "-", reason) for area in METHODS]
    return PatchReport(type(config).__name__, areas, 0, 0, versions=_versions())


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("hf_infeco", "transformers", "torch")}


# ---------------------------------------------------------------- lines


def _s2o_lines(model: PreTrainedModel, config: InfecoConfig, found: Survey) -> list[AreaReport]:
    if config.s2o is None:
        return [_off("s2o", found)]
    s2o, backend = config.s2o, _backend("s2o_prefill", model)
    limit, modules = compat.max_positions(model.config), compat.attention_modules(compat.decoder_of(model))

    def line(index: int) -> tuple[Status, str, str]:
        measured = _measured_crossover(model, s2o, index, modules[index])
        if measured is not None and measured.keys > min(limit or NEVER, NEVER - 1):
            return "fallback", f"dense: sparse prefill was {measured.summary()}", backend
        where = "where it is measured to be faster" if s2o.crossover == "auto" else f"from {s2o.crossover} tokens on"
        where = where if measured is None else f"from {measured.keys:,} tokens on, {measured.summary()}"
        return "enabled", f"sparse prefill {where}, tau={s2o.tau:g}; dense below", backend

    return _lines("s2o", found, line)


def _measured_crossover(
    model: PreTrainedModel, s2o: S2OConfig, index: int, module: torch.nn.Module
) -> Crossover | None:
    """What S2O has measured for heads like this layer's, if it has."""
    kv_heads, key_dim, value_dim = compat.key_value_dims(model.config, index, module)
    heads = (compat.query_heads(model.config, index), kv_heads)
    has_sinks = getattr(module, "sinks", None) is not None
    return known(s2o, _device(model), model.dtype, heads, (key_dim, value_dim), has_sinks)


def _innerq_lines(model: PreTrainedModel, config: InfecoConfig, found: Survey) -> list[AreaReport]:
    if config.innerq is None:
        return [_off("innerq", found)]
    bits = f"{config.innerq.bits_per_number:g} bits per number"
    if config.innerq.bits_per_number < (default := InnerQConfig().bits_per_number):
        bits += f" (which cost real models more accuracy than the default's {default:g}: docs/real.md)"
    limit = compat.max_positions(model.config)
    if limit is not None and config.innerq.packed_tokens(limit) == 0:
        bits = f"exact, because its windows cover the {limit} tokens that the model takes"
    plans, modules = _plans(model), compat.attention_modules(compat.decoder_of(model))
    cache = last_cache(model)
    decode, dequantize = _backend("innerq_decode", model), _backend("innerq_dequantize", model)
    # torch's own threads spin after each of its operations, on the cores that ours want (docs/innerq.md).
    waits = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    spins = decode == "cpu" and torch.get_num_threads() > 1 and not waits
    spinning = "; faster with OMP_WAIT_POLICY=passive set before Python starts" if spins else ""

    def line(index: int) -> tuple[Status, str, str]:
        if cache is not None and cache != InnerQCache.__name__:
            return "fallback", f"the last forward ran on a {cache}, which is not packed", "torch"
        # Storage works under any attention; only the gain in speed needs ours.
        code, name = attention_code(modules[index]), type(modules[index]).__name__
        reason = found.attention_refusal
        if code.alters_cache:
            reason = reason or f"{name} rearranges what the cache returns"
        if "position_bias" in code.arguments:
            reason = reason or f"{name} adds a position bias to its logits"
        plan = plans.get(index)
        if plan is not None and plan.unpacked_calls and not plan.packed_calls:
            reason = reason or "its decode steps so far asked for more than a causal or padding mask"
        if reason:
            return "fallback", f"{bits}, dequantized at each step because {reason}", dequantize
        return "enabled", f"{bits}, attended packed{spinning}", decode

    return _lines("innerq", found, line)


def _backend(operation: str, model: PreTrainedModel) -> str:
    """What runs on the model's device; a skeleton without weights is taken to go where the weights would."""
    return choose(operation, _device(model)).backend


def _device(model: PreTrainedModel) -> torch.device:
    if model.device.type != "meta":
        return model.device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _lines(area: str, found: Survey, line: Callable[[int], tuple[Status, str, str]]) -> list[AreaReport]:
    """One line for all layers of one outcome: `line(index)` where the method can work, its reason where it cannot."""
    outcomes: dict[tuple, list[int]] = defaultdict(list)
    for index in range(found.num_layers):
        reason = found.refusals[area].get(index)
        outcomes[line(index) if reason is None else ("unsupported", reason, None)].append(index)
    at_work_first = sorted(outcomes.items(), key=lambda item: item[0][0] == "unsupported")
    return [
        AreaReport(area, status, layer_pattern(at), detail, backend) for (status, detail, backend), at in at_work_first
    ]


def _off(area: str, found: Survey) -> AreaReport:
    return AreaReport(area, "off", layer_pattern(list(range(found.num_layers))), "switched off in the config")


# ---------------------------------------------------------------- numbers


class _Sizes:
    """Bytes of the keys and values of one sequence, layer by layer, plain or packed."""

    def __init__(self, model: PreTrainedModel, config: InfecoConfig, found: Survey):
        self.innerq, self.packed_layers = config.innerq, found.packed_layers
        self.limit = compat.max_positions(model.config)
        modules = compat.attention_modules(compat.decoder_of(model))
        self.layers = {i: layer for i, layer in enumerate(compat.default_layers(model.config)) if i in modules}
        self.dims = {i: compat.key_value_dims(model.config, i, modules[i]) for i in self.layers}
        self.item = model.dtype.itemsize

    def per_token(self, *, packed: bool) -> float:
        """What one more token adds, beyond the windows; nothing is packed where they cover all that a model takes."""
        never = self.innerq is None or (self.limit is not None and self.innerq.packed_tokens(self.limit) == 0)
        growing = [i for i, layer in self.layers.items() if compat.is_full_attention_layer(layer)]
        return sum(
            self._packed(i) if packed and i in self.packed_layers and not never else self._plain(i) for i in growing
        )

    def at(self, num_tokens: int, *, packed: bool) -> float:
        """All that a cache of `num_tokens` holds: layers that grow, and sliding windows."""
        total = 0.0
        for i, layer in self.layers.items():
            window = getattr(layer, "sliding_window", None)
            held = min(num_tokens, window) if window else num_tokens if compat.is_full_attention_layer(layer) else 0
            can_pack = packed and self.innerq is not None and i in self.packed_layers
            count = self.innerq.packed_tokens(held) if can_pack else 0
            total += (held - count) * self._plain(i) + (count * self._packed(i) if count else 0)
        return total

    def _plain(self, index: int) -> float:
        kv_heads, key_dim, value_dim = self.dims[index]
        return kv_heads * (key_dim + value_dim) * self.item

    def _packed(self, index: int) -> float:
        kv_heads, key_dim, value_dim = self.dims[index]
        return kv_heads * self.innerq.bits_per_token(key_dim, value_dim) / 8


def _plans(model: PreTrainedModel) -> dict[int, LayerPlan]:
    modules = compat.attention_modules(compat.decoder_of(model))
    return {index: vars(module)[PLAN_ATTRIBUTE] for index, module in modules.items() if PLAN_ATTRIBUTE in vars(module)}


def _density(model: PreTrainedModel) -> S2OReport:
    """Density by layer; that of layers which share one module stands at the first of them."""
    plans = _plans(model)
    first = {id(plan): index for index, plan in reversed(plans.items())}
    return S2OReport.of(
        {
            index: LayerDensity(
                int(plan.stats.visited_pairs), plan.stats.causal_pairs, float(plan.stats.missed_mass), plan.stats.rows
            )
            for index, plan in plans.items()
            if plan.s2o is not None and first[id(plan)] == index
        }
    )
