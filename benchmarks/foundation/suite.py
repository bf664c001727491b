"""The foundation's numbers. Times are of one run on one machine: read the ratios."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import hf_infeco
from hf_infeco import CACHE_NAME
from hf_infeco.training.testbed.recall.evaluate import perplexity, recall_accuracy
from hf_infeco.training.testbed.recall.needles import sample_document
from hf_infeco.training.testbed.recall.text import encode_text, held_out_text

from ..documents import Table, markdown_table
from ..measuring import bundled_model, timed
from ..suite import Run, Suite

QUESTIONS_PER_DOCUMENT = 64
CONFIGURATIONS = {"dense": None, "patched": {}, "S2O only": {"innerq": False}, "InnerQ only": {"s2o": False}}


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    lengths: tuple[int, ...] = (1024, 4096, 16384)  # of documents in the recall part
    text_lengths: tuple[int, ...] = (4096, 16384)  # of windows of real text
    questions: int = 1024  # per length; fewer give wider intervals
    windows: int = 8
    tokens: int = 16384  # of the prompt that is timed
    steps: int = 64


QUICK = Extent(lengths=(1024,), text_lengths=(1024,), questions=64, windows=1, tokens=1024, steps=1)


def by_configuration(measure: Callable, *names: str) -> Callable[[Run, Extent], dict[str, Any]]:
    """A part that measures the model in each of these configurations, all by default."""

    def part(run: Run, extent: Extent) -> dict[str, Any]:
        tokenizer = AutoTokenizer.from_pretrained(run.model)
        model = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.bfloat16).eval().to(run.device)
        measured = {}
        for name in names or CONFIGURATIONS:
            if (methods := CONFIGURATIONS[name]) is not None:
                hf_infeco.patch(model, **methods)
            measured[name] = measure(model, tokenizer, extent)
            hf_infeco.unpatch(model)
        return measured

    return part


def new_cache(model):
    """The cache that generate() would use on this model."""
    if hf_infeco.report(model).status("innerq") == {"enabled"}:
        return hf_infeco.InnerQCache(model.config)
    return DynamicCache(config=model.config)


def recall(model, tokenizer, extent: Extent) -> dict:
    """Right answers at each length. Equal seeds, so that all configurations are asked the same questions."""
    entry = {}
    for seq_len in extent.lengths:
        accuracy = recall_accuracy(
            model,
            tokenizer,
            seq_len,
            -(-extent.questions // QUESTIONS_PER_DOCUMENT),
            QUESTIONS_PER_DOCUMENT,
            seed=1,
            cache_factory=lambda: new_cache(model),
        )
        interval = [round(bound, 5) for bound in accuracy.interval]
        entry[str(seq_len)] = {"correct": accuracy.correct, "total": accuracy.total, "interval_95": interval}
    return entry


def perplexity_in_chunks(model, tokenizer, extent: Extent) -> dict:
    """Perplexity of held-out text, half a window at a time: the second half reads what the cache kept of the first."""
    return {
        str(seq_len): round(
            perplexity(model, tokenizer, seq_len, extent.windows, seq_len // 2, lambda: new_cache(model)), 4
        )
        for seq_len in extent.text_lengths
    }


@torch.no_grad()
def speed(model, tokenizer, extent: Extent) -> dict:
    """Prefill of one document, bytes of its cache, and plain decoding from it (median step)."""
    text = torch.tensor(encode_text(tokenizer, held_out_text()))
    needles = sample_document(tokenizer, text, extent.tokens, 32, torch.Generator().manual_seed(0))
    document = needles.document[None].to(model.device)
    model(document[:, :2048])  # first-call costs, S2O's crossover among them, are not what is measured
    before = hf_infeco.report(model).s2o
    seconds, out = timed(model.device, lambda: model(document, use_cache=True, logits_to_keep=1))
    after = hf_infeco.report(model).s2o
    cache = out[CACHE_NAME]
    entry = {"tokens": extent.tokens, "prefill_seconds": round(seconds, 3), "kv_bytes": hf_infeco.cache_nbytes(cache)}
    if after is not None:
        visited = after.visited_pairs - before.visited_pairs
        entry["prefill_density"] = round(visited / (after.causal_pairs - before.causal_pairs), 4)

    def step():
        return model(document[:, :1], **{CACHE_NAME: cache}, use_cache=True)

    entry["decode_seconds_per_token"] = round(median(timed(model.device, step)[0] for _ in range(extent.steps)), 5)
    return entry


def as_table(recalled: dict, perplexities: dict, speeds: dict) -> str:
    """Questions about long documents, perplexity of text, and what a prompt costs. Cells not measured stay empty."""
    rows: list[tuple[str, ...]] = []

    def row(label: str, part: dict, cell) -> None:
        entries = [part.get(name) for name in CONFIGURATIONS]
        rows.append((label, *("" if entry is None else cell(entry) for entry in entries)))

    for seq_len in recalled["dense"]:
        row(
            f"right answers, {int(seq_len):,} tokens",
            recalled,
            lambda entry, at=seq_len: f"{100 * entry[at]['correct'] / entry[at]['total']:.2f} %",
        )
    for seq_len in perplexities["dense"]:
        label = f"perplexity, {int(seq_len):,} tokens in two chunks"
        row(label, perplexities, lambda entry, at=seq_len: f"{entry[at]:.3f}")
    dense = speeds["dense"]
    at = f"{dense['tokens']:,} tokens"
    row(f"KV bytes, {at}", speeds, lambda entry: f"{entry['kv_bytes'] / dense['kv_bytes']:.3f}x")
    row(f"attended pairs in prefill, {at}", speeds, lambda entry: f"{entry.get('prefill_density', 1):.3f}x")
    for key, label in (("prefill_seconds", "prefill time"), ("decode_seconds_per_token", "time per decoded token")):
        row(f"{label}, {at}", speeds, lambda entry, key=key: f"{entry[key] / dense[key]:.2f}x")
    questions = next(iter(recalled["dense"].values()))["total"]
    note = (
        f"The bundled recall model (2.2 M parameters, 4 layers); {questions:,} questions per length; times of one run."
    )
    return f"{markdown_table(('', *CONFIGURATIONS), rows)}\n\n{note}"


SUITE = Suite(
    name="foundation",
    title="The bundled recall model",
    parts={
        "recall": by_configuration(recall, "dense", "patched"),
        "perplexity": by_configuration(perplexity_in_chunks),
        "speed": by_configuration(speed),
    },
    full=Extent(),
    quick=QUICK,
    tables=(Table("Dense and patched", ("recall", "perplexity", "speed"), as_table),),
    find_model=partial(bundled_model, "recall"),
    uses_gpu=True,
)
