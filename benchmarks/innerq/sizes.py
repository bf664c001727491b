"""
Measured bytes of cache objects over 1K to 128K tokens, batch 1. One layer and one KV head of 128 dimensions: more of
either are as many times the bytes, and hqq's search for its scales takes minutes on a large layer.
"""

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from tqdm import tqdm
from transformers import Cache, LlamaConfig, PreTrainedConfig, QuantizedCache

from .caches import MAIN, filled

KV_HEADS, HEAD_DIM = 8, 128
LENGTHS = tuple(2**power for power in range(10, 18))
# 4 bits on transformers' other defaults. hqq has no groups along its axis 0 that a cache may use.
QUANTIZED: dict[str, tuple[str, dict[str, Any]]] = {
    "QuantizedCache, quanto, 4 bits": ("optimum-quanto", {"backend": "quanto"}),
    "QuantizedCache, hqq, 4 bits": ("hqq", {"backend": "hqq", "axis_key": 1, "axis_value": 1}),
}


def config(heads: int, kv_heads: int = KV_HEADS) -> PreTrainedConfig:
    """One layer of a model with `heads` query heads."""
    sizes = {"hidden_size": heads * HEAD_DIM, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return LlamaConfig(num_hidden_layers=1, head_dim=HEAD_DIM, **sizes)


def is_installed(package: str) -> bool:
    """By its metadata: what an uninstalled package leaves behind can still be found by its import name."""
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def quantized_caches() -> dict[str, Callable[[PreTrainedConfig], Cache]]:
    """transformers' own quantized caches, those of them whose backend is installed."""
    return {
        name: lambda config, options=options: QuantizedCache(config=config, **options)
        for name, (package, options) in QUANTIZED.items()
        if is_installed(package)
    }


def tokens(seq_len: int, seed: int = 0, batch: int = 1, kv_heads: int = KV_HEADS) -> tuple[torch.Tensor, ...]:
    """Random keys and values `[batch, kv_heads, seq_len, 128]` in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, kv_heads, seq_len, HEAD_DIM, generator=generator).bfloat16() for _ in range(2))


def measure_bytes(lengths: tuple[int, ...] = LENGTHS) -> list[dict]:
    """One entry per cache and length; `of_bf16` is the share of the dense cache's bytes."""
    entries = []
    for seq_len in tqdm(lengths, desc="bytes", unit="length"):
        exact = [tokens(seq_len, kv_heads=1)]
        dense = 0
        for name, make in (MAIN | quantized_caches()).items():
            found = nbytes(filled(make, config(1, 1), exact))
            dense = found if name == "dense" else dense
            entries.append({"cache": name, "tokens": seq_len, "bytes": found, "of_bf16": found / dense})
    return entries


def nbytes(cache: Cache) -> int:
    """Bytes of the storages behind a cache's tensors, also of those inside a quantizer's own tensor classes."""
    storages = {}
    for layer in cache.layers:
        held = layer.tensors() if hasattr(layer, "tensors") else _plain_tensors(vars(layer))
        for tensor in held:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def _plain_tensors(value: Any) -> Iterator[torch.Tensor]:
    if hasattr(value, "__tensor_flatten__"):
        yield from _plain_tensors([getattr(value, name) for name in value.__tensor_flatten__()[0]])
    elif isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _plain_tensors(part)
