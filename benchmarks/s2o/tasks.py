"""What is left of a model's abilities when it reads its prompt by S2O: recall of needles, and perplexity."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

import hf_infeco
from hf_infeco.training.testbed.recall.evaluate import perplexity, recall_accuracy

QUESTIONS_PER_DOCUMENT = 64
# Sparse at every length: below the crossover of the defaults dense attention would be measured.
S2O = hf_infeco.S2OConfig(crossover=0)


def recall(folder: Path, lengths: tuple[int, ...], device: str, questions: int) -> list[dict]:
    """Right answers at each length; equal seeds, so that dense attention and S2O are asked the same questions."""

    def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seq_len: int) -> dict:
        documents = -(-questions // QUESTIONS_PER_DOCUMENT)
        accuracy = recall_accuracy(model, tokenizer, seq_len, documents, QUESTIONS_PER_DOCUMENT, seed=1)
        return {"correct": accuracy.correct, "total": accuracy.total, "interval_95": accuracy.interval}

    return _dense_and_sparse(folder, lengths, device, measure)


def text_perplexity(folder: Path, lengths: tuple[int, ...], device: str, windows: int) -> list[dict]:
    """Perplexity of held-out text, a window in one forward."""

    def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seq_len: int) -> dict:
        return {"perplexity": perplexity(model, tokenizer, seq_len, windows), "windows": windows}

    return _dense_and_sparse(folder, lengths, device, measure)


def _dense_and_sparse(folder: Path, lengths: tuple[int, ...], device: str, measure: Callable[..., dict]) -> list[dict]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval().to(device)
    entries: list[dict[str, Any]] = []
    for seq_len in lengths:
        entries.append({"attention": "dense", "tokens": seq_len, **measure(model, tokenizer, seq_len)})
        with hf_infeco.patched(model, s2o=S2O, innerq=False):
            entry = {"attention": "S2O", "tokens": seq_len, **measure(model, tokenizer, seq_len)}
            entries.append(entry | {"density": hf_infeco.report(model).s2o.density})
    return entries
