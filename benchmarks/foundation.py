"""
The foundation's numbers: the recall model dense and patched with defaults, on recall, perplexity, bytes and time.

    python -m hf_infeco.benchmarks.foundation [--parts recall perplexity speed] [--questions 1024]

Each part is measured on its own and replaces its entry in benchmarks/results/foundation.json; the table in README.md
is written from that file. Times are of one run on one machine: read the ratios.
"""

import argparse
from statistics import median

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import hf_infeco
from hf_infeco import CACHE_NAME
from hf_infeco.benchmarks.documents import markdown_table, write_page
from hf_infeco.benchmarks.measuring import MODEL, ROOT, read_results, results_folder, timed, where, write_part
from hf_infeco.training.testbed.recall.evaluate import perplexity, recall_accuracy
from hf_infeco.training.testbed.recall.needles import sample_document
from hf_infeco.training.testbed.recall.text import encode_text, held_out_text

RESULTS = results_folder() / "foundation.json"
LENGTHS = (1024, 4096, 16384)
QUESTIONS_PER_DOCUMENT = 64
CONFIGURATIONS = {"dense": None, "patched": {}, "S2O only": {"innerq": False}, "InnerQ only": {"s2o": False}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="none only rewrites the table")
    parser.add_argument("--questions", type=int, default=1024, help="per length; fewer give wider intervals")
    parser.add_argument("--windows", type=int, default=8, help="windows of real text for the perplexity")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16).eval().to(device)
    for part in arguments.parts:
        names, measure = PARTS[part]
        measured = {"where": where(device)}
        for name in names:
            if (methods := CONFIGURATIONS[name]) is not None:
                hf_infeco.patch(model, **methods)
            measured[name] = measure(model, tokenizer, arguments)
            hf_infeco.unpatch(model)
        write_part(RESULTS, part, measured)
    table = as_table(read_results(RESULTS))
    write_page(ROOT / "README.md", {"foundation": table})
    print(table)


def new_cache(model):
    """The cache that generate() would use on this model."""
    if hf_infeco.report(model).status("innerq") == {"enabled"}:
        return hf_infeco.InnerQCache(model.config)
    return DynamicCache(config=model.config)


def recall(model, tokenizer, arguments) -> dict:
    """Right answers at each length. Equal seeds, so that all configurations are asked the same questions."""
    entry = {}
    for seq_len in LENGTHS:
        accuracy = recall_accuracy(
            model,
            tokenizer,
            seq_len,
            -(-arguments.questions // QUESTIONS_PER_DOCUMENT),
            QUESTIONS_PER_DOCUMENT,
            seed=1,
            cache_factory=lambda: new_cache(model),
        )
        interval = [round(bound, 5) for bound in accuracy.interval]
        entry[str(seq_len)] = {"correct": accuracy.correct, "total": accuracy.total, "interval_95": interval}
    return entry


def perplexity_in_chunks(model, tokenizer, arguments) -> dict:
    """Perplexity of held-out text, half a window at a time: the second half reads what the cache kept of the first."""
    return {
        str(seq_len): round(
            perplexity(model, tokenizer, seq_len, arguments.windows, seq_len // 2, lambda: new_cache(model)), 4
        )
        for seq_len in (4096, 16384)
    }


@torch.no_grad()
def speed(model, tokenizer, arguments, seq_len: int = 16384, steps: int = 64) -> dict:
    """Prefill of one document, bytes of its cache, and plain decoding from it (median step)."""
    text = torch.tensor(encode_text(tokenizer, held_out_text()))
    needles = sample_document(tokenizer, text, seq_len, 32, torch.Generator().manual_seed(0))
    document = needles.document[None].to(model.device)
    model(document[:, :2048])  # first-call costs, S2O's crossover among them, are not what is measured
    before = hf_infeco.report(model).s2o
    seconds, out = timed(model.device, lambda: model(document, use_cache=True, logits_to_keep=1))
    after = hf_infeco.report(model).s2o
    cache = out[CACHE_NAME]
    entry = {"tokens": seq_len, "prefill_seconds": round(seconds, 3), "kv_bytes": hf_infeco.cache_nbytes(cache)}
    if after is not None:
        visited = after.visited_pairs - before.visited_pairs
        entry["prefill_density"] = round(visited / (after.causal_pairs - before.causal_pairs), 4)

    def step():
        return model(document[:, :1], **{CACHE_NAME: cache}, use_cache=True)

    entry["decode_seconds_per_token"] = round(median(timed(model.device, step)[0] for _ in range(steps)), 5)
    return entry


PARTS = {
    "recall": (("dense", "patched"), recall),
    "perplexity": (tuple(CONFIGURATIONS), perplexity_in_chunks),
    "speed": (tuple(CONFIGURATIONS), speed),
}


def as_table(results: dict) -> str:
    """The README's table, in Markdown; cells that were not measured stay empty."""
    rows: list[tuple[str, ...]] = []

    def row(label: str, part: str, cell) -> None:
        entries = [results[part].get(name) for name in CONFIGURATIONS]
        rows.append((label, *("" if entry is None else cell(entry) for entry in entries)))

    for seq_len in map(str, LENGTHS):
        row(
            f"right answers, {int(seq_len):,} tokens",
            "recall",
            lambda entry, at=seq_len: f"{100 * entry[at]['correct'] / entry[at]['total']:.2f} %",
        )
    for seq_len in results["perplexity"]["dense"]:
        row(
            f"perplexity, {int(seq_len):,} tokens in two chunks",
            "perplexity",
            lambda entry, at=seq_len: f"{entry[at]:.3f}",
        )
    dense = results["speed"]["dense"]
    at = f"{dense['tokens']:,} tokens"
    row(f"KV bytes, {at}", "speed", lambda entry: f"{entry['kv_bytes'] / dense['kv_bytes']:.3f}x")
    row(f"attended pairs in prefill, {at}", "speed", lambda entry: f"{entry.get('prefill_density', 1):.3f}x")
    for key, label in (("prefill_seconds", "prefill time"), ("decode_seconds_per_token", "time per decoded token")):
        row(f"{label}, {at}", "speed", lambda entry, key=key: f"{entry[key] / dense[key]:.2f}x")
    place = results["speed"]["where"]
    questions = results["recall"]["dense"][str(LENGTHS[0])]["total"]
    note = (
        f"The bundled recall model (2.2 M parameters, 4 layers); {questions:,} questions per length; times of one run "
        f"on {place['device']}. transformers {place['transformers']}, torch {place['torch']}, {place['date']}."
    )
    return f"{markdown_table(('', *CONFIGURATIONS), rows)}\n\n{note}"


if __name__ == "__main__":
    main()
