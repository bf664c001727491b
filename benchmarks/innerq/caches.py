"""What is compared, as transformers caches: dense, InnerQ with its settings and without each ingredient, KIVI."""

from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from hf_infeco import InnerQCache, InnerQConfig
from hf_infeco.kernels.innerq.reference import GROUP, dequantize_groups, quantize_groups

from .kivi import round_trip as kivi
from .turboquant import round_trip as turboquant

Pair = tuple[torch.Tensor, torch.Tensor]  # keys [B, Hkv, n, D] and values [B, Hkv, n, Dv]


class RoundTripLayer(DynamicLayer):
    """
    A layer that keeps older tokens as they are after `lose(keys, values)`, in the model's dtype: what a quantizer does
    to the numbers, without its storage. Windows as in InnerQ's layer: `sink` first and `recent` last tokens stay.
    """

    def __init__(self, lose: Callable[[torch.Tensor, torch.Tensor], Pair], sink: int, recent: int):
        super().__init__()
        self.lose, self.sink, self.recent = lose, sink, recent
        self.lost = 0  # tokens behind the sinks that went through `lose`

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs) -> Pair:
        attended = super().update(key_states, value_states, *args, **kwargs)
        start = self.sink + self.lost
        count = (self.get_seq_length() - start - self.recent) // GROUP * GROUP
        if count > 0:
            older = slice(start, start + count)
            self.keys, self.values = self.keys.clone(), self.values.clone()  # this call attends what it was given
            self.keys[:, :, older], self.values[:, :, older] = (
                lossy.to(self.keys.dtype) for lossy in self.lose(self.keys[:, :, older], self.values[:, :, older])
            )
            self.lost += count
        return attended


def ternary_values(key: torch.Tensor, value: torch.Tensor) -> Pair:
    """Exact keys, and values of {-1, 0, 1} steps in InnerQ's groups: its 2-bit form as the paper has it."""
    groups = value.float().unflatten(2, (-1, GROUP)).transpose(-1, -2)
    step = groups.abs().amax(-1, keepdim=True)
    rounded = (groups / step.clamp(min=1e-8)).round() * step.half().float()
    return key, rounded.transpose(-1, -2).flatten(2, 3)


def half_steps(key: torch.Tensor, value: torch.Tensor) -> Pair:
    """Exact keys, and values in InnerQ's 2-bit form."""
    packed = quantize_groups(value.unflatten(2, (-1, GROUP)).transpose(-1, -2), 2)
    return key, dequantize_groups(packed).transpose(-1, -2).flatten(2, 3)


def _innerq(settings: InnerQConfig, **changes) -> Callable[[PreTrainedConfig], Cache]:
    return lambda config: InnerQCache(config, replace(settings, **changes))


def _round_trip(lose: Callable, sink: int, recent: int) -> Callable[[PreTrainedConfig], Cache]:
    def make(config: PreTrainedConfig) -> Cache:
        cache = DynamicCache(config=config)
        cache.layers = [RoundTripLayer(lose, sink, recent) for _ in cache.layers]
        return cache

    return make


SETTINGS = {
    "default": InnerQConfig(),
    "base": InnerQConfig.base(),
    "small": InnerQConfig.small(),
    "hybrid": InnerQConfig.hybrid(),
}
WINDOWS = {"sink": InnerQConfig().sink, "recent": InnerQConfig().recent}
MAIN: dict[str, Callable[[PreTrainedConfig], Cache]] = {
    "dense": lambda config: DynamicCache(config=config),
    **{name: _innerq(settings) for name, settings in SETTINGS.items()},
}
PEERS = {"KIVI-2": _round_trip(kivi, sink=0, recent=128)}  # its own windows: no sinks
ABLATIONS = {
    "base without windows": _innerq(InnerQConfig.base(), sink=0, recent=0),
    "base without normalization": _innerq(InnerQConfig.base(), normalize_keys=False),
    "base without centering": _innerq(InnerQConfig.base(), center_keys=False),
    "base without both": _innerq(InnerQConfig.base(), normalize_keys=False, center_keys=False),
    "small without centering": _innerq(InnerQConfig.small(), center_keys=False),
}
# What tells grouping from windows, and one form of 2-bit values from the other.
FORMS = {
    "KIVI-2, windows of InnerQ": _round_trip(kivi, **WINDOWS),
    "exact keys, values in {-1.5, -0.5, 0.5, 1.5}": _round_trip(half_steps, **WINDOWS),
    "exact keys, values in {-1, 0, 1}": _round_trip(ternary_values, **WINDOWS),
}
BITS = {"dense": 16.0, "KIVI-2": 3.0} | {name: settings.bits_per_number for name, settings in SETTINGS.items()}


def filled(make: Callable[[PreTrainedConfig], Cache], config: PreTrainedConfig, exact: list[Pair]) -> Cache:
    """A cache that was given a prompt's exact keys and values, one pair per layer, as its prefill would have."""
    cache = make(config)
    for index, (key, value) in enumerate(exact):
        cache.update(key, value, index)
    return cache


# In the windows of InnerQ; measured on a real model, in `benchmarks.real`.
ROTATED = {
    "TurboQuant, 4 bits": _round_trip(turboquant(4, 4), **WINDOWS),
    "TurboQuant, 3 bits": _round_trip(turboquant(3, 3), **WINDOWS),
}
