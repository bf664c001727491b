"""
STATIC on a GPU: milliseconds a step by the size of the catalogue and of the vocabulary, beside the paper's figures.

    python -P -m hf_infeco.benchmarks.static_gpu

The paper measured on a TPU v6e, with 140 rows, 8 tokens an item, and a model of 3 billion parameters; the share of a
step is taken of a model of Llama-3.2-3B's shape with random weights. The result is `results/static_gpu.json`.
"""

import json

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import hf_infeco

from .measuring import results_folder, timed, where

ITEMS = (10**5, 10**6, 10**7, 2 * 10**7)  # with 2048 tokens a level
VOCABULARIES = (256, 2048, 8192, 32768)  # with a million items
TOKENS, LENGTH, ROWS, PROMPT = 2048, 8, 140, 64
REPEATS = 50
# Milliseconds added per step, from the paper; its |V| figures are of 20 million items.
PAPER = {"items 1e5 to 1e8": [0.023, 0.039], "|V| 256 to 32768": [0.034, 0.044], "share of a step": 0.0025}
LLAMA_3B = dict(
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128_256,
)


def step_milliseconds(items: int, tokens: int, device: torch.device) -> list[float]:
    """Mean of `REPEATS` calls of our processor at each depth, one after the other without waiting between them."""
    sequences = np.random.default_rng(0).integers(0, tokens, (items, LENGTH), dtype=np.int32)
    index = hf_infeco.StaticIndex.build(sequences, vocab_size=tokens).to(device)
    chosen = sequences[np.random.default_rng(1).integers(0, items, ROWS)]
    rows = torch.cat([torch.ones(ROWS, PROMPT, dtype=torch.int64), torch.from_numpy(chosen).long()], 1).to(device)
    processor = hf_infeco.StaticLogitsProcessor(index, prompt_length=PROMPT)
    scores = torch.randn(ROWS, tokens, device=device)
    taken = []
    for depth in range(LENGTH):
        ids = rows[:, : PROMPT + depth].contiguous()

        def run(ids: torch.Tensor = ids) -> None:
            for _ in range(REPEATS):
                processor(ids, scores)

        run()
        taken.append(round(1000 * timed(device, run)[0] / REPEATS, 4))
    return taken


@torch.no_grad()
def model_milliseconds(device: torch.device, shape: dict) -> float:
    """One decoding step of all rows behind a prompt, in bfloat16."""
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16).eval()
        ids = torch.ones(ROWS, PROMPT, dtype=torch.int64)
    cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values

    def run() -> None:
        for _ in range(LENGTH):
            model(ids[:, :1], past_key_values=cache, use_cache=True)

    run()
    return round(1000 * timed(device, run)[0] / LENGTH, 3)


def measure(device: torch.device, shape: dict = LLAMA_3B) -> dict:
    """Everything that is written."""
    cases = [(count, TOKENS) for count in ITEMS] + [(10**6, size) for size in VOCABULARIES if size != TOKENS]
    steps = [
        {"items": count, "vocabulary": size, "milliseconds_by_depth": step_milliseconds(count, size, device)}
        for count, size in tqdm(cases, desc="STATIC on a GPU", unit="catalogue")
    ]
    model = model_milliseconds(device, shape)
    largest = max(max(entry["milliseconds_by_depth"]) for entry in steps)
    return {"steps": steps, "model_step_milliseconds": model, "largest_share": round(largest / model, 4)}


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("STATIC's GPU benchmark needs a CUDA device; on a CPU run benchmarks/static.py.")
    results = {"where": where("cuda"), "paper": PAPER, **measure(torch.device("cuda"))}
    (results_folder() / "static_gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
