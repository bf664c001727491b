"""The tables of docs/innerq.md, from the file of results."""

from collections.abc import Callable

from ..documents import markdown_table, place_note

Entries = list[dict]


def bytes_table(entries: Entries) -> str:
    shown = (1024, 2048, 4096, 8192, 32768, 131072)
    caches = dict.fromkeys(entry["cache"] for entry in entries)
    share = {(entry["cache"], entry["tokens"]): entry["of_bf16"] for entry in entries}
    rows = [[name, *(f"{share[name, tokens]:.3f}" for tokens in shown)] for name in caches if name != "dense"]
    return markdown_table(["bytes / bytes in bf16, at tokens", *(f"{tokens:,}" for tokens in shown)], rows)


def step_table(entries: Entries) -> str:
    cells: dict[tuple, dict[str, dict]] = {}
    for entry in entries:
        cells.setdefault((entry["batch"], entry["tokens"], entry["ratio"]), {})[entry["attention"]] = entry
    names = list(next(iter(cells.values())))
    rows = [
        [str(batch), f"{tokens:,}", str(ratio), *(f"{1e3 * cell[name]['seconds']:.2f}" for name in names)]
        + [f"{cell['base']['over_bf16']:.1f}x", f"{cell['base']['over_fp32']:.1f}x"]
        for (batch, tokens, ratio), cell in sorted(cells.items())
    ]
    header = ["batch", "tokens", "query heads per KV head", *(f"{name}, ms" for name in names)]
    return markdown_table([*header, "base over bf16", "base over fp32"], rows)


def roofline_table(entries: Entries) -> str:
    cell = [entry for entry in entries if (entry["batch"], entry["tokens"], entry["ratio"]) == (1, 32768, 4)]
    rows = [
        [entry["attention"], f"{entry['bytes'] / 1e6:.1f}", f"{1e3 * entry['seconds']:.2f}"]
        + [f"{entry['bytes'] / entry['seconds'] / 1e9:.1f}", f"{100 * entry['of_bandwidth']:.0f} %"]
        for entry in cell
    ]
    return markdown_table(["32,768 tokens, batch 1", "MB moved", "ms", "GB/s", "of the memory's bandwidth"], rows)


def cached_step_table(entries: Entries) -> str:
    quantized = [entry["cache"] for entry in entries if entry["cache"].startswith("QuantizedCache")]
    rows = [
        [entry["cache"], f"{1e3 * entry['seconds']:.2f}", *(f"{entry['over'][peer]:.1f}x" for peer in quantized)]
        for entry in entries
    ]
    return markdown_table(
        [f"step at {entries[0]['tokens']:,} tokens", "ms", *(f"over {peer}" for peer in quantized)], rows
    )


def decode_table(entries: Entries) -> str:
    rows = [
        [entry["cache"], f"{1e3 * entry['seconds_per_token']:.2f}", f"{entry['tokens_per_second']:.0f}"]
        + [f"{entry['over_dense']:.2f}x"]
        for entry in entries
    ]
    return markdown_table(
        [f"whole model at {entries[0]['tokens']:,} tokens", "ms per token", "tokens/s", "over dense"], rows
    )


def recall_table(entries: Entries) -> str:
    rows = [
        [
            entry["cache"],
            f"{100 * entry['rate']:.2f} %",
            "{:.2f} - {:.2f}".format(*(100 * p for p in entry["interval_95"])),
        ]
        + [f"{entry['total']:,}"]
        for entry in entries
    ]
    return markdown_table([f"recall at {entries[0]['tokens']:,} tokens", "right", "95 % interval", "questions"], rows)


def perplexity_table(entries: Entries) -> str:
    lengths = sorted({entry["tokens"] for entry in entries})
    found = {(entry["cache"], entry["tokens"]): entry for entry in entries}
    rows = []
    for name in dict.fromkeys(entry["cache"] for entry in entries):
        cells = [found.get((name, tokens)) for tokens in lengths]
        bits = next((f"{cell['bits']:g}" for cell in cells if cell and "bits" in cell), "")
        shown = [
            "" if cell is None else f"{cell['perplexity']:.3f} ({100 * cell['over_dense']:+.2f} %)" for cell in cells
        ]
        rows.append([name, bits, *shown])
    return markdown_table(["cache", "bits", *(f"perplexity, {tokens:,} tokens" for tokens in lengths)], rows)


def errors_table(entries: Entries) -> str:
    layers = range(len(entries[0]["error_by_layer"]))
    rows = [
        [entry["cache"], *(f"{100 * error:.1f} %" for error in entry["error_by_layer"])]
        for entry in entries
        if entry["cache"] != "dense"
    ]
    header = f"error of attention's output, {entries[0]['tokens']:,} tokens"
    return markdown_table([header, *(f"layer {layer}" for layer in layers)], rows)


# Name of the mark: the part of the results that it shows, and how.
TABLES: dict[str, tuple[str, Callable[[Entries], str]]] = {
    "bytes": ("bytes", bytes_table),
    "step": ("step", step_table),
    "roofline": ("step", roofline_table),
    "cached_step": ("cached_step", cached_step_table),
    "decode": ("decode", decode_table),
    "recall": ("recall", recall_table),
    "perplexity": ("perplexity", perplexity_table),
    "errors": ("errors", errors_table),
}


def blocks(results: dict) -> dict[str, str]:
    """Name of the mark in the document: its table with a note, for each part that was measured."""
    return {
        mark: f"{draw(results[part]['entries'])}\n\n{place_note(results[part]['where'])}"
        for mark, (part, draw) in TABLES.items()
        if part in results
    }
