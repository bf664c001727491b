"""`InnerQCache`: a transformers `Cache` whose full-attention layers are InnerQ layers."""

import os
from collections.abc import Iterable, Iterator
from typing import Any, Self

import torch
from transformers import Cache, PreTrainedConfig

from .. import compat
from ..kv import cache_nbytes
from . import saving
from .config import InnerQConfig
from .layer import InnerQLayer
from .padding import left_padding


class InnerQCache(Cache):
    """
    A KV cache in 3 to 4.5 bits per number (InnerQ, arXiv 2602.23200).

    Pass it as `cache` (`past_key_values` before transformers 5.24) to a model's forward or to `generate`; a patched
    model makes one by itself. On a patched model decoding attends on the packed data; on any other the cache is
    dequantized, layer by layer, at each call. Sliding-window, linear and other special layers stay as transformers
    builds them.

    Args:
        config (`PreTrainedConfig`): the model's config.
        innerq (`InnerQConfig`, *optional*): settings, or what `InnerQConfig.coerce` takes, such as "small"; the
            default is `InnerQConfig()`.
        **offloading: `offloading` and `offload_only_non_sliding`, as for `DynamicCache`.

    Raises:
        ValueError: if no layer of this model can be an InnerQ layer.
    """

    max_cache_len = -1  # no limit; peft's prefix tuning reads it

    def __init__(self, config: PreTrainedConfig, innerq: InnerQConfig | dict | str | None = None, **offloading: bool):
        compat.check_version()
        settings = InnerQConfig.coerce(True if innerq is None else innerq)
        if settings is None:
            raise ValueError("InnerQCache cannot be switched off: use transformers' DynamicCache instead.")
        self.innerq = settings
        defaults = compat.default_layers(config)
        if reason := unsupported_reason(config, defaults):
            raise ValueError(f"InnerQCache cannot serve this model: {reason}. Use transformers' DynamicCache.")
        layers = [InnerQLayer(self.innerq) if compat.is_full_attention_layer(layer) else layer for layer in defaults]
        super().__init__(layers=layers, **offloading)
        self._model = saving.fingerprint(config)

    def __iter__(self) -> Iterator[tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]]:
        """Keys, values and the window of each layer, as of a `DynamicCache`."""
        for layer in self.layers:
            yield layer.keys, layer.values, getattr(layer, "_sliding_window_tensor", None)

    @property
    def nbytes(self) -> int:
        """Bytes of all memory the cache holds, spare room and windows included, read from the tensors' storages."""
        return cache_nbytes(self)

    @torch.compiler.disable(reason="it looks at the rows' lengths")
    def set_left_padding(self, attention_mask: torch.Tensor | None) -> None:
        """
        Tells the cache where the rows of a left-padded batch begin, so that sinks, means and norms are those of real
        tokens. A patched model does it at each forward; with any other call it before the prompt.

        What is padding when a row's first tokens are packed is stored as nothing: it cannot be shown later.

        Args:
            attention_mask (`torch.Tensor` `[B, tokens]`, *optional*): as a model takes it; None for no padding.
        """
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(
                f"attention_mask has {attention_mask.ndim} dimensions, and left padding is read off the two of "
                "[batch, tokens]."
            )
        waiting = [layer for layer in self.layers if isinstance(layer, InnerQLayer) and layer.waits_for_padding]
        starts = None if attention_mask is None or not waiting else left_padding(attention_mask)
        if starts is not None and not starts.any():
            starts = None
        for layer in waiting:
            layer.set_left_padding(starts)

    def save(self, path: str | os.PathLike) -> None:
        """
        Writes everything the cache holds into one safetensors file, or leaves what was there if that fails.

        Raises:
            ValueError: if a layer is no InnerQ layer (sliding windows and other special layers).
        """
        tensors: dict[str, torch.Tensor] = {}
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, InnerQLayer):
                raise ValueError(
                    f"Layer {index} of this cache is a {type(layer).__name__}, and only InnerQ layers can be saved: "
                    "this model's prompts have to be run again."
                )
            tensors |= {f"{index}.{name}": tensor for name, tensor in layer.state().items()}
        header = {"innerq": self.innerq.to_dict(), "model": self._model, "num_tokens": self.get_seq_length()}
        saving.write(path, tensors, header)

    @classmethod
    def load(cls, path: str | os.PathLike, config: PreTrainedConfig, device: str | torch.device = "cpu") -> Self:
        """
        A cache as `save` wrote it, ready to go on from, with the settings that it was made with.

        The model is told by its config alone: another fine-tune of the same architecture is not noticed.

        Args:
            config (`PreTrainedConfig`): the model's config.
            device: where the tensors go; that of the model.

        Raises:
            FileNotFoundError, ValueError: if the file is not there, damaged, of another version or another model's.
        """
        tensors, header = saving.read(path, config)
        cache = cls(config, InnerQConfig.from_dict({"normalize_values": False} | header["innerq"]))  # new in format 4
        for index, layer in enumerate(cache.layers):
            own = f"{index}."
            state = {name.removeprefix(own): tensor for name, tensor in tensors.items() if name.startswith(own)}
            if state:
                layer.load_state({name: tensor.to(device) for name, tensor in state.items()})
        if cache.get_seq_length() != header["num_tokens"]:
            raise ValueError(
                f"{os.fspath(path)!r} holds {cache.get_seq_length()} tokens, and its header says "
                f"{header['num_tokens']}. Run the prompt again and save it anew."
            )
        return cache


def unsupported_reason(config: PreTrainedConfig, layers: Iterable[Any]) -> str | None:
    """
    Why no layer of a model can use InnerQ, as a sentence without its full stop; None if one can. `layers` are those of
    the cache that transformers would make.
    """
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder, whose cache also holds cross-attention"
    config = compat.text_config(config)
    if compat.caches_latents(config):
        return "it has multi-head latent attention, which caches what it compresses by itself"
    if not any(map(compat.is_full_attention_layer, layers)):
        return "none of its layers has a growing full-attention cache"
    return None
