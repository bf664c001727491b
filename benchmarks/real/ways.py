"""All that is compared: how a prompt is read (densely or by S2O), and what is kept of it."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel, QuantizedCache
from transformers.cache_utils import DynamicLayer

import hf_infeco
from hf_infeco import InnerQCache, InnerQConfig, S2OConfig

from ..innerq.caches import FORMS, PEERS, ROTATED
from ..innerq.sizes import is_installed

Maker = Callable[[PreTrainedConfig], Cache]


@dataclass(frozen=True)
class Way:
    """
    Attributes:
        s2o, innerq: what the model is patched with; the false value for neither.
        other: makes the cache, where it is not InnerQ's.
        bits: per packed number, scales included.
    """

    s2o: S2OConfig | bool = False
    innerq: InnerQConfig | bool = False
    other: Maker = lambda config: DynamicCache(config=config)
    bits: float = 16.0

    def at_work(self, model: PreTrainedModel) -> AbstractContextManager:
        """The model patched so, or as it was loaded, for the length of a `with`."""
        if not (self.s2o or self.innerq):
            return nullcontext()
        return hf_infeco.patched(model, s2o=self.s2o, innerq=self.innerq)

    def empty(self, config: PreTrainedConfig) -> Cache:
        """A cache of this way's own that holds nothing yet."""
        return InnerQCache(config, self.innerq) if self.innerq else self.other(config)

    def kept(self, exact: Cache, config: PreTrainedConfig) -> Cache:
        """
        Such a cache that was given a prompt's exact keys and values at once, as by its prefill. Layers
        that do not grow, such as sliding windows, stay as they are.
        """
        made = self.empty(config)
        for index, layer in enumerate(exact.layers):
            if type(layer) is DynamicLayer:
                made.update(layer.keys, layer.values, index)
            else:
                made.layers[index] = copy.deepcopy(layer)
        return made


def _innerq(config: InnerQConfig) -> Way:
    return Way(innerq=config, bits=config.bits_per_number)


def _quantized(package: str, bits: int, **options) -> dict[str, Way]:
    """transformers' own quantized cache of `bits`, if its backend is installed; a scale and a zero per 64 numbers."""
    if not is_installed(package):
        return {}
    backend = package.removeprefix("optimum-")
    name = f"QuantizedCache, {backend}, {bits} bits"
    return {
        name: Way(
            other=lambda config: QuantizedCache(backend=backend, config=config, nbits=bits, **options), bits=bits + 0.5
        )
    }


# Sparse at every length: below its crossover the defaults would read densely.
S2O = S2OConfig(crossover=0)
PRESETS = {
    "InnerQ": _innerq(InnerQConfig()),
    "InnerQ balanced": _innerq(InnerQConfig.balanced()),
    "InnerQ size": _innerq(InnerQConfig.size()),
    "InnerQ base": _innerq(InnerQConfig.base()),
    "InnerQ hybrid": _innerq(InnerQConfig.hybrid()),
    "InnerQ small": _innerq(InnerQConfig.small()),
}
BOTH = {"S2O, InnerQ": replace(PRESETS["InnerQ"], s2o=S2O)}
MAIN = {"dense": Way(), "S2O": Way(S2O), **PRESETS, **BOTH}
CACHES = {
    "dense": Way(),
    **_quantized("optimum-quanto", 4),
    **_quantized("hqq", 4, axis_key=1, axis_value=1),
    "TurboQuant, 4 bits": Way(other=ROTATED["TurboQuant, 4 bits"], bits=4.25),
    "InnerQ": PRESETS["InnerQ"],
    "InnerQ, no norms of values": _innerq(InnerQConfig(normalize_values=False)),
    "InnerQ balanced": PRESETS["InnerQ balanced"],
    "InnerQ size": PRESETS["InnerQ size"],
    "InnerQ size, not rotated": _innerq(replace(InnerQConfig.size(), rotate_keys=False)),
    "InnerQ base": PRESETS["InnerQ base"],
    "InnerQ hybrid": PRESETS["InnerQ hybrid"],
    "TurboQuant, 3 bits": Way(other=ROTATED["TurboQuant, 3 bits"], bits=3.25),
    "InnerQ small": PRESETS["InnerQ small"],
    "KIVI-2": Way(other=PEERS["KIVI-2"], bits=3.0),  # its own windows: no sinks
    "KIVI-2, windows of InnerQ": Way(other=FORMS["KIVI-2, windows of InnerQ"], bits=3.0),
    **_quantized("optimum-quanto", 2),
}
