"""
STATIC on a GPU: `python -m hf_infeco.benchmarks.static.gpu`. Not yet run on a GPU.

Milliseconds a step by the size of the catalogue and of the vocabulary, and their share of a decoding step of a model
of Llama-3.2-3B's shape with random weights. The paper's figures stand beside them in `results/static_gpu.json`: it
measured on a TPU v6e, with 140 rows too, 8 tokens an item, and a model of 3 billion parameters.
"""

import json

import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import hf_infeco
from hf_infeco import CACHE_NAME

from ..measuring import results_folder, timed, where
from .catalogues import BATCH, LENGTH, PROMPT, TOKENS, catalogue, row_sets

# Items, and tokens on a level.
CASES = [(items, TOKENS) for items in (10**5, 10**6, 10**7, 2 * 10**7)]
CASES += [(10**6, tokens) for tokens in (256, 8192, 32768)]
BEAMS = 70
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
    sequences = catalogue(items, tokens=tokens)
    index = hf_infeco.StaticIndex.build(sequences, vocab_size=tokens).to(device)
    rows = row_sets(sequences, BEAMS, 1)[0].to(device)
    processor = hf_infeco.StaticLogitsProcessor(index, prompt_length=PROMPT)
    scores = torch.randn(len(rows), tokens, device=device)
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
        ids = torch.ones(BATCH * BEAMS, PROMPT, dtype=torch.int64)
    cache = model(ids, use_cache=True, logits_to_keep=1)[CACHE_NAME]

    def run() -> None:
        for _ in range(LENGTH):
            model(ids[:, :1], **{CACHE_NAME: cache}, use_cache=True)

    run()
    return round(1000 * timed(device, run)[0] / LENGTH, 3)


def measure(cases: list[tuple[int, int]], device: torch.device, shape: dict) -> dict:
    """The processor's steps, the model's, and the share of the dearest."""
    steps = [
        {"items": items, "vocabulary": tokens, "milliseconds_by_depth": step_milliseconds(items, tokens, device)}
        for items, tokens in tqdm(cases, desc="STATIC on a GPU", unit="catalogue")
    ]
    model = model_milliseconds(device, shape)
    largest = max(max(entry["milliseconds_by_depth"]) for entry in steps)
    return {"steps": steps, "model_step_milliseconds": model, "largest_share": round(largest / model, 4)}


def main() -> list[str]:
    """Measures, writes, and returns the lines of a short table."""
    results = {"where": where("cuda"), "paper": PAPER, **measure(CASES, torch.device("cuda"), LLAMA_3B)}
    (results_folder() / "static_gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    lines = []
    for entry in results["steps"]:
        setting = f"{entry['items']:,} items, vocabulary {entry['vocabulary']:,}"
        least, *_, most = sorted(entry["milliseconds_by_depth"])
        lines.append(f"STATIC step, {setting}: {least:.3f} to {most:.3f} ms")
    share = f"{results['largest_share']:.2%} of the {results['model_step_milliseconds']:.1f} ms of a model's step"
    return [*lines, f"STATIC step, the dearest: {share}"]


if __name__ == "__main__":
    print(*main(), sep="\n")
