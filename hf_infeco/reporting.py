"""The report of a model: what its survey promises, and where it has run, what it really did."""

from collections import defaultdict
from importlib.metadata import version
from typing import Any

from transformers import PreTrainedConfig

from . import compat
from .config import InfecoConfig
from .methods import Method, Outcome, registered
from .report import AreaReport, PatchReport, layer_pattern
from .survey import Survey


def build_report(found: Survey, config: InfecoConfig | None, num_tokens: int | None = None) -> PatchReport:
    """
    The report of what `config` gives on a model; None switches everything off.

    Raises:
        ValueError: for a number of tokens below 1.
    """
    if num_tokens is not None and num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens} is no length of a sequence: pass 1 or more, or None.")
    settings = {method: None if config is None else getattr(config, method.name, None) for method in registered()}
    asked = {method: own for method, own in settings.items() if own is not None}
    sizes = _Sizes(found, asked)
    counted = {method.name: method.measured(found) for method in asked}
    return PatchReport(
        model=type(found.model).__name__,
        areas=[line for method, own in settings.items() for line in _lines(found, method, own)],
        kv_bytes_per_token_before=sizes.per_token(packed=False),
        kv_bytes_per_token_after=sizes.per_token(packed=True),
        num_tokens=num_tokens,
        kv_bytes_before=num_tokens and sizes.at(num_tokens, packed=False),
        kv_bytes_after=num_tokens and sizes.at(num_tokens, packed=True),
        measured={area: numbers for area, numbers in counted.items() if numbers is not None},
        versions=_versions(),
    )


def refused_report(config: PreTrainedConfig, reason: str) -> PatchReport:
    """The report on a config of which there is no model to look at."""
    areas = [AreaReport(method.name, "unsupported", "-", reason) for method in registered()]
    return PatchReport(type(config).__name__, areas, 0, 0, versions=_versions())


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("hf_infeco", "transformers", "torch")}


def _lines(found: Survey, method: Method, settings: Any) -> list[AreaReport]:
    """One line for all layers of one outcome."""
    if settings is None:
        pattern = layer_pattern([layer.index for layer in found.layers])
        return [AreaReport(method.name, "off", pattern, "switched off in the config")]
    outcomes: dict[Outcome, list[int]] = defaultdict(list)
    for layer in found.layers:
        reason = method.refuse(found, layer)
        outcome = Outcome("unsupported", reason) if reason else method.outcome(found, layer, settings)
        outcomes[outcome].append(layer.index)
    at_work_first = sorted(outcomes.items(), key=lambda item: item[0].status == "unsupported")
    return [
        AreaReport(method.name, status, layer_pattern(at), detail, backend)
        for (status, detail, backend), at in at_work_first
    ]


class _Sizes:
    """Bytes of the keys and values of one sequence, layer by layer, plain or packed."""

    def __init__(self, found: Survey, asked: dict[Method, Any]):
        self.longest = found.longest
        self.layers = {layer.index: layer.cache for layer in found.layers if layer.attention and layer.cache}
        self.dims = {
            layer.index: compat.key_value_dims(found.model.config, layer.index, layer.attention)
            for layer in found.layers
            if layer.index in self.layers
        }
        self.packing = {
            layer.index: packing
            for method, settings in asked.items()
            if (packing := method.packing(settings)) is not None
            for layer in found.layers
            if method.refuse(found, layer) is None
        }
        self.item = found.model.dtype.itemsize

    def per_token(self, *, packed: bool) -> float:
        """What one more token adds, beyond the windows; nothing is packed where they cover all that a model takes."""
        growing = [index for index, cache in self.layers.items() if compat.is_full_attention_layer(cache)]
        return sum(self._packed(i) if packed and self._ever_packs(i) else self._plain(i) for i in growing)

    def at(self, num_tokens: int, *, packed: bool) -> float:
        """All that a cache of `num_tokens` holds: layers that grow, and sliding windows."""
        total = 0.0
        for index, cache in self.layers.items():
            window = getattr(cache, "sliding_window", None)
            held = min(num_tokens, window) if window else num_tokens if compat.is_full_attention_layer(cache) else 0
            count = self.packing[index].packed_tokens(held) if packed and index in self.packing else 0
            total += (held - count) * self._plain(index) + (count * self._packed(index) if count else 0)
        return total

    def _ever_packs(self, index: int) -> bool:
        packing = self.packing.get(index)
        return packing is not None and (self.longest is None or packing.packed_tokens(self.longest) > 0)

    def _plain(self, index: int) -> float:
        kv_heads, key_dim, value_dim = self.dims[index]
        return kv_heads * (key_dim + value_dim) * self.item

    def _packed(self, index: int) -> float:
        kv_heads, key_dim, value_dim = self.dims[index]
        return kv_heads * self.packing[index].bits_per_token(key_dim, value_dim) / 8
