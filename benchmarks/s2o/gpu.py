"""
S2O's Triton kernel against the dense kernels that torch has for CUDA: `python -m hf_infeco.benchmarks.s2o.gpu`.

Heads as a model of 8 billion parameters has them: 32 query heads on 8 KV heads of 128 dimensions, bfloat16; and the
prefill of such a model, whose random weights attend more diffusely than trained ones. The result is
`results/s2o_gpu.json`. Errors are those of a sample of rows against dense attention in float32. Not yet run on a GPU.
"""

import json
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import hf_infeco
from hf_infeco import S2OConfig
from hf_infeco.kernels.s2o.granules import cut_into_granules
from hf_infeco.kernels.s2o.reference import frame_of
from hf_infeco.training.testbed.structured_heads import structured_heads

from ..measuring import LLAMA_8B, median_seconds, results_folder, where
from .inputs import Heads

LENGTHS = (8192, 16384, 32768, 65536, 131072)
PREFILL_LENGTHS = (32768, 131072)
TAUS = (0.1, 0.01, S2OConfig().tau)
TILES = (64, 128)
DENSE = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
SAMPLED_ROWS = 256  # of each head, for the error
REPEATS = 5
SEGMENT, GRANULE = S2OConfig().segment, S2OConfig().granule


def measure(lengths: tuple[int, ...], device: torch.device) -> list[dict]:
    """One entry per length, tau and tile; all times of a length are taken in turn."""
    from hf_infeco.kernels.s2o.triton import order_rows, s2o_prefill

    entries = []
    for seq_len in tqdm(lengths, desc="S2O on a GPU", unit="length"):
        heads = large_heads(seq_len).to(torch.bfloat16).to(device)
        rows = torch.linspace(0, seq_len - 1, SAMPLED_ROWS, device=device).long()
        exact = dense_rows(heads, rows)
        scale = heads.query.shape[-1] ** -0.5
        grouped = heads.query.unflatten(1, (heads.key.shape[1], -1))[0]  # [Hkv, ratio, N, D]

        def sparse(tau, tile, heads=heads, scale=scale):
            settings = S2OConfig(tau=tau, segment=SEGMENT, granule=GRANULE).kernel_settings
            return s2o_prefill(*heads, scale=scale, settings=settings, tile=tile)

        runs = {(tau, tile): lambda tau=tau, tile=tile: sparse(tau, tile) for tau in TAUS for tile in TILES}
        preparations = {
            "cut": lambda heads=heads, grouped=grouped: cut_into_granules(
                heads.key[0], heads.value[0], frame_of(grouped, heads.key[0]).keys, SEGMENT, GRANULE
            ),
            "order": lambda grouped=grouped: order_rows(grouped, 0, SEGMENT, TILES[0]),
        }
        dense = {name: lambda name=name, heads=heads: dense_by(name, heads) for name in DENSE}
        everything = {**runs, **preparations, **dense}
        for run in everything.values():  # compiles, chooses algorithms, fills the allocator's cache
            run()
        seconds = median_seconds(device, everything, REPEATS)
        for (tau, tile), run in runs.items():
            out, stats = run()
            entries.append(
                {
                    "tokens": seq_len,
                    "tau": tau,
                    "tile": tile,
                    "error": relative_error(out[:, :, rows], exact),
                    "density": float(stats.density),
                    "missed": float(stats.missed),
                    "s2o_ms": 1e3 * seconds[tau, tile],
                    **{f"{name}_ms": 1e3 * seconds[name] for name in (*preparations, *dense)},
                    "speedup": min(seconds[name] for name in dense) / seconds[tau, tile],
                    "dense_error": {name: relative_error(run()[:, :, rows], exact) for name, run in dense.items()},
                }
            )
    return entries


def measure_prefill(lengths: tuple[int, ...], device: torch.device, shape: dict) -> list[dict]:
    """Seconds of a whole prefill of one prompt, dense and by S2O, one entry per length."""
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16).eval()
    entries = []
    for seq_len in tqdm(lengths, desc="prefill of a whole model", unit="length"):
        ids = torch.randint(shape["vocab_size"], (1, seq_len), device=device)

        @torch.no_grad()
        def run(ids=ids):
            model(ids, use_cache=False, logits_to_keep=1)

        def dense(run=run):
            with sdpa_kernel(list(DENSE.values())) if device.type == "cuda" else nullcontext():
                run()

        def sparse(run=run):
            with hf_infeco.patched(model, s2o=S2OConfig(crossover=0), innerq=False):
                run()

        runs = {"dense": dense, "s2o": sparse}
        for once in runs.values():
            once()
        seconds = median_seconds(device, runs, 3)
        with hf_infeco.patched(model, s2o=S2OConfig(crossover=0), innerq=False):
            run()
            density = hf_infeco.report(model).s2o.density
        entries.append(
            {"tokens": seq_len, **seconds, "speedup": seconds["dense"] / seconds["s2o"], "density": density}
        )
    return entries


def large_heads(seq_len: int) -> Heads:
    """32 query heads on 8 KV heads of 128 dimensions, float32, with the patterns that training leaves in heads."""
    return Heads(*structured_heads(seq_len, num_heads=32, num_kv_heads=8, head_dim=128, seed=1)[:3])


def dense_by(backend: str, heads: Heads) -> torch.Tensor:
    """Causal attention by one kernel of `DENSE`, and no other."""
    with sdpa_kernel(DENSE[backend]):
        return F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)


def dense_rows(heads: Heads, rows: torch.Tensor) -> torch.Tensor:
    """Causal attention of the query rows at positions `rows [R]`, in float32 and by KV head: `[1, H, R, Dv]`."""
    query, key, value = heads
    future = torch.arange(key.shape[2], device=key.device) > rows[:, None]  # [R, N]
    outs = []
    for queries, keys, values in zip(query[0].unflatten(0, (key.shape[1], -1)), key[0], value[0], strict=True):
        logits = queries[:, rows].float() @ keys.float().T * keys.shape[-1] ** -0.5  # [ratio, R, N]
        outs.append(logits.masked_fill(future, -torch.inf).softmax(-1) @ values.float())
    return torch.cat(outs)[None]


def relative_error(out: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative L2 error over all heads and sampled rows."""
    return float((out.float() - exact).norm() / exact.norm())


def main() -> list[str]:
    """Measures, writes, and returns the lines of a short table."""
    device = torch.device("cuda")
    results = {"where": where("cuda"), "entries": measure(LENGTHS, device)}
    results["prefill"] = measure_prefill(PREFILL_LENGTHS, device, LLAMA_8B)
    (results_folder() / "s2o_gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    lines = []
    for entry in results["entries"]:
        over = {name: f"{entry[f'{name}_ms'] / entry['s2o_ms']:.2f}x over {name}" for name in DENSE}
        setting = f"{entry['tokens']:,} tokens, tau {entry['tau']:g}, tile {entry['tile']}"
        lines.append(f"S2O attention, {setting}: {', '.join(over.values())}, error {entry['error']:.2%}")
    for entry in results["prefill"]:
        lines.append(f"S2O prefill of a model, {entry['tokens']:,} tokens: {entry['speedup']:.2f}x")
    return lines


if __name__ == "__main__":
    print(*main(), sep="\n")
