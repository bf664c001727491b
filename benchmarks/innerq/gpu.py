"""
InnerQ on a GPU: `python -m hf_infeco.benchmarks.innerq.gpu`. Not yet run on a GPU.

Two parts, written to `results/innerq_gpu.json`: one layer's decode attention against torch's dense kernels (heads as a
model of 8 billion parameters has them: 32 query heads on 8 KV heads of 128 dimensions), with the share of the memory's
bandwidth; and tokens per second of such a model with random weights, dense and patched.
"""

import json
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import AutoModelForCausalLM, Cache, LlamaConfig

import hf_infeco
from hf_infeco import CACHE_NAME
from hf_infeco.innerq.layer import InnerQLayer

from ..measuring import LLAMA_8B, median_seconds, results_folder, where
from .caches import MAIN, SETTINGS
from .sizes import HEAD_DIM, KV_HEADS
from .step import SCALE

STEP_CELLS = {1: (8192, 32768, 131072), 8: (8192, 32768), 32: (8192,)}  # batch: tokens
MODEL_TOKENS = (32768, 65536, 131072)
RATIO = 4
DENSE = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
REPEATS, STEPS = 20, 32
PREFILL = 2048  # tokens that fill a cache at a time
COPIED = 2**30  # bytes, for the bandwidth


def bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds(device, {"copy": lambda: target.copy_(source)}, REPEATS)
    return 2 * COPIED / seconds["copy"]


def random_pair(batch: int, tokens: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (batch, KV_HEADS, tokens, HEAD_DIM)
    return torch.randn(shape, dtype=torch.float16, device=device), torch.randn(
        shape, dtype=torch.float16, device=device
    )


def dense_by(backend: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of one query by one kernel of `DENSE`; the query heads of a KV head are rows of one problem."""
    rows = query.view(query.shape[0], KV_HEADS, -1, HEAD_DIM)
    with sdpa_kernel(DENSE[backend]):
        return F.scaled_dot_product_attention(rows, key, value, scale=SCALE).view_as(query)


@torch.no_grad()
def measure_step(cells: dict[int, tuple[int, ...]], device: torch.device) -> list[dict]:
    """One entry per batch, length and setting; all times of a cell are taken in turn."""
    peak = bandwidth(device)
    entries = []
    for batch, lengths in cells.items():
        for seq_len in tqdm(lengths, desc=f"decode attention, batch {batch}", unit="length"):
            key, value = random_pair(batch, seq_len, device)
            query = torch.randn(batch, RATIO * KV_HEADS, 1, HEAD_DIM, dtype=key.dtype, device=device)
            layers = {name: InnerQLayer(settings) for name, settings in SETTINGS.items()}
            for layer in layers.values():
                layer.update(key, value)
            runs: dict[str, Callable] = {name: _attending(layer, query) for name, layer in layers.items()}
            runs |= {name: lambda name=name, q=query, k=key, v=value: dense_by(name, q, k, v) for name in DENSE}
            for run in runs.values():  # compiles, chooses algorithms, fills the allocator's cache
                run()
            seconds = median_seconds(device, runs, REPEATS)
            dense = min(seconds[name] for name in DENSE)
            rows = query.view(batch, KV_HEADS, RATIO, HEAD_DIM).float()
            exact = F.scaled_dot_product_attention(rows, key.float(), value.float(), scale=SCALE).view_as(query)
            for name, layer in layers.items():
                moved = sum(tensor.nbytes for tensor in layer.state().values())
                entries.append(
                    {
                        "batch": batch,
                        "tokens": seq_len,
                        "cache": name,
                        "innerq_us": 1e6 * seconds[name],
                        **{f"{peer}_us": 1e6 * seconds[peer] for peer in DENSE},
                        "over_dense": dense / seconds[name],
                        "of_bandwidth": moved / seconds[name] / peak,
                        "error": float((runs[name]() - exact).norm() / exact.norm()),
                    }
                )
    return entries


def _attending(layer: InnerQLayer, query: torch.Tensor) -> Callable:
    nothing = query.new_empty(query.shape[0], KV_HEADS, 0, HEAD_DIM)
    key, _ = layer.update(nothing, nothing)
    return lambda: key.view_of.attend(query, SCALE, None)


@torch.no_grad()
def measure_model(config: LlamaConfig, lengths: tuple[int, ...], device: torch.device) -> list[dict]:
    """Tokens per second of a model with random weights, batch 1, with each cache; and the cache's bytes."""
    with device:  # 8 billion random numbers are made where they are wanted
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16).eval()
    entries = []
    for seq_len in lengths:
        for name, make in MAIN.items():
            if name != "dense":
                hf_infeco.patch(model, s2o=False)
            cache = _random_cache(make(config), config, seq_len, device)
            token = torch.zeros(1, 1, dtype=torch.long, device=device)

            def step(token=token, cache=cache):
                return model(token, **{CACHE_NAME: cache}, use_cache=True)

            step()
            seconds = median_seconds(device, {"step": step}, STEPS)["step"]
            size = hf_infeco.cache_nbytes(cache)
            entries.append({"cache": name, "tokens": seq_len, "tokens_per_second": 1 / seconds, "kv_bytes": size})
            hf_infeco.unpatch(model)
            del cache
    return entries


def _random_cache(cache: Cache, config: LlamaConfig, tokens: int, device: torch.device) -> Cache:
    """Fills a cache as a prefill in pieces would; what the numbers are does not change the time."""
    shape = (1, config.num_key_value_heads, PREFILL, config.head_dim)
    for layer in range(config.num_hidden_layers):
        for _ in range(tokens // PREFILL):
            key, value = (torch.randn(shape, dtype=torch.float16, device=device) for _ in range(2))
            cache.update(key, value, layer)
    return cache


def main() -> list[str]:
    """Measures, writes, and returns the lines of a short table."""
    device, out = torch.device("cuda"), results_folder() / "innerq_gpu.json"
    results = {"where": where("cuda"), "step": measure_step(STEP_CELLS, device)}
    out.write_text(json.dumps(results, indent=1) + "\n")
    results["model"] = measure_model(LlamaConfig(**LLAMA_8B), MODEL_TOKENS, device)
    out.write_text(json.dumps(results, indent=1) + "\n")
    lines = []
    for entry in results["step"]:
        setting = f"batch {entry['batch']}, {entry['tokens']:,} tokens, {entry['cache']}"
        share = f"{entry['over_dense']:.2f}x over dense, {entry['of_bandwidth']:.0%} of the bandwidth"
        lines.append(f"InnerQ decode attention, {setting}: {share}")
    for entry in results["model"]:
        setting = f"{entry['tokens']:,} tokens, {entry['cache']}"
        lines.append(f"InnerQ whole model, {setting}: {entry['tokens_per_second']:.1f} tokens/s")
    return lines


if __name__ == "__main__":
    print(*main(), sep="\n")
