"""Measure a causal LM on the recall task: needles found in long real text, and perplexity of held-out text.

python -m hf_infeco.training.testbed.recall.evaluate examples/models/recall

Works on any transformers causal LM with the testbed's tokenizer, also on one whose attention or cache is patched: it
only calls `model(input_ids, cache=...)`.
"""

import argparse
import copy
import json
from collections.abc import Callable
from math import ceil, exp
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerFast
from transformers.cache_utils import Cache

from hf_infeco import CACHE_NAME

from ..accuracy import Accuracy
from .needles import question_ids, sample_document
from .text import encode_text, held_out_text

CacheFactory = Callable[[], Cache]
QUESTIONS_AT_ONCE = 16  # copies of a document's cache alive together: 0.5 GB for the bundled model at 16K tokens
QUESTIONS = {1024: 4000, 4096: 4000, 16384: 2000}  # of the report, by document length
WINDOWS = {4096: 36, 16384: 10}  # of held-out text, by window length
NEEDLES = 32  # in a document of the report, each asked for once


@torch.no_grad()
def recall_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    seq_len: int,
    documents: int,
    questions_per_document: int,
    seed: int = 0,
    cache_factory: CacheFactory | None = None,
    progress: bool = True,
    num_needles: int | None = None,
    text_ids: Tensor | None = None,
) -> Accuracy:
    """Share of needles whose two values greedy decoding returns, over `documents * questions_per_document` questions.

    Each document of `seq_len` tokens is prefilled in one forward; its questions then share that cache, each asked as
    if it were the only one.

    Args:
        seed: of the documents; equal seeds give equal documents and questions.
        cache_factory: makes the fresh cache of a document; `DynamicCache(config=model.config)` by default.
        num_needles: needles in a document, at most 64; as many as questions by default.
        text_ids: text to hide needles in `[num_tokens]`; the held-out text by default.

    Raises:
        ValueError: more questions than needles, or needles that do not fit.
    """
    num_needles = questions_per_document if num_needles is None else num_needles
    if questions_per_document > num_needles:
        raise ValueError(f"{questions_per_document} questions need as many needles, but num_needles is {num_needles}")
    generator = torch.Generator().manual_seed(seed)
    text_ids = _held_out_ids(tokenizer) if text_ids is None else text_ids
    correct = 0
    for _ in tqdm(range(documents), desc=f"recall at {seq_len}", unit="document", disable=not progress):
        needles = sample_document(tokenizer, text_ids, seq_len, num_needles, generator)
        cache = _fresh_cache(model, cache_factory)
        model(needles.document[None].to(model.device), **{CACHE_NAME: cache}, use_cache=True, logits_to_keep=1)
        asked = torch.randperm(num_needles, generator=generator)[:questions_per_document]
        for chosen in asked.split(QUESTIONS_AT_ONCE):
            answers = ask(model, tokenizer, cache, needles.keys[chosen])
            correct += int((answers == needles.answers[chosen]).all(dim=1).sum())
    return Accuracy(correct, documents * questions_per_document)


@torch.no_grad()
def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, cache: Cache, keys: Tensor) -> Tensor:
    """Ask for each of `keys` `[n]` after the one document in `cache`; the answers `[n, 2]`. `cache` is left alone."""
    fork = copy.deepcopy(cache)
    fork.batch_repeat_interleave(len(keys))
    questions = torch.stack([question_ids(tokenizer, int(key)) for key in keys]).to(model.device)
    first = model(questions, **{CACHE_NAME: fork}, use_cache=True).logits[:, -1:].argmax(dim=-1)
    second = model(first, **{CACHE_NAME: fork}, use_cache=True).logits[:, -1:].argmax(dim=-1)
    return torch.cat([first, second], dim=1).cpu()


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    seq_len: int,
    windows: int,
    chunk: int | None = None,
    cache_factory: CacheFactory | None = None,
    progress: bool = True,
    text_ids: Tensor | None = None,
) -> float:
    """Perplexity per token of real text in `windows` evenly spaced windows of `seq_len` tokens, `<bos>` included.

    Args:
        chunk: feed the window in pieces of this many tokens through the cache, so that later tokens attend to what a
            lossy cache kept. By default the window is one forward.
        cache_factory: makes the fresh cache of a window; `DynamicCache(config=model.config)` by default. Without it
            and without `chunk` no cache is used.
        text_ids: the text `[num_tokens]`; the held-out text by default.

    Raises:
        ValueError: the text is shorter than a window.
    """
    text_ids = _held_out_ids(tokenizer) if text_ids is None else text_ids
    spare = len(text_ids) - (seq_len - 1)
    if spare < 0:
        raise ValueError(f"seq_len {seq_len} is longer than the text of {len(text_ids)} tokens")
    starts = [round(index * spare / max(1, windows - 1)) for index in range(windows)]
    total = 0.0
    for start in tqdm(starts, desc=f"perplexity at {seq_len}", unit="window", disable=not progress):
        window = torch.cat([torch.tensor([tokenizer.bos_token_id]), text_ids[start : start + seq_len - 1]])
        cache = _fresh_cache(model, cache_factory) if chunk or cache_factory else None
        total += _window_loss(model, window[None].to(model.device), chunk or seq_len, cache)
    return exp(total / (windows * (seq_len - 1)))


def _window_loss(model: PreTrainedModel, window: Tensor, chunk: int, cache: Cache | None) -> float:
    """Summed negative log-likelihood in nats of `window[:, 1:]`, read `chunk` tokens at a time."""
    total = 0.0
    for begin in range(0, window.shape[1] - 1, chunk):
        piece = window[:, begin : begin + chunk]
        targets = window[0, begin + 1 : begin + 1 + piece.shape[1]]
        logits = model(piece, **{CACHE_NAME: cache}, use_cache=cache is not None).logits[0, : len(targets)]
        total += float(torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum"))
    return total


def _fresh_cache(model: PreTrainedModel, cache_factory: CacheFactory | None) -> Cache:
    return cache_factory() if cache_factory else DynamicCache(config=model.config)


def _held_out_ids(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    return torch.tensor(encode_text(tokenizer, held_out_text()))


def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int, share: float = 1.0) -> dict:
    """Recall at 1K, 4K and 16K tokens and perplexity at 4K and 16K, ready for JSON; `share` of the work for a look."""
    report = {"seed": seed, "needles_per_document": NEEDLES, "dtype": str(model.dtype).removeprefix("torch.")}
    report["recall"] = {}
    for seq_len, questions in QUESTIONS.items():
        documents = ceil(share * questions / NEEDLES)
        accuracy = recall_accuracy(model, tokenizer, seq_len, documents, NEEDLES, seed)
        report["recall"][str(seq_len)] = {
            "correct": accuracy.correct,
            "total": accuracy.total,
            "rate": round(accuracy.rate, 5),
            "interval_95": [round(bound, 5) for bound in accuracy.interval],
        }
    windows = {seq_len: ceil(share * count) for seq_len, count in WINDOWS.items()}
    report["perplexity"] = {str(n): round(perplexity(model, tokenizer, n, count), 4) for n, count in windows.items()}
    report["perplexity_windows"] = {str(seq_len): count for seq_len, count in windows.items()}
    return report


def main() -> None:
    """Command line: evaluate a folder, print the report and write it to `evaluation.json` beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=Path("examples/models/recall"))
    parser.add_argument("--share", type=float, default=1.0, help="share of the work, for a quick look")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = evaluate(model.to(device), tokenizer, options.seed, options.share)
    text = json.dumps(report, indent=2) + "\n"
    (options.model / "evaluation.json").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
