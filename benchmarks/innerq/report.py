"""The tables of InnerQ, from the file of results."""

from ..documents import Table, entries_table, markdown_table

Entries = list[dict]


def bytes_table(entries: Entries) -> str:
    """
    Bytes of the cache objects, spare room and windows included. Where a cache is short, the 128 exact tokens weigh: up
    to 1K tokens transformers' 4-bit caches are smaller than `base`, because they quantize a prompt's last tokens too.
    """
    measured = {entry["tokens"] for entry in entries}
    shown = sorted(measured & {1024, 2048, 4096, 8192, 32768, 131072})
    caches = dict.fromkeys(entry["cache"] for entry in entries)
    share = {(entry["cache"], entry["tokens"]): entry["of_bf16"] for entry in entries}
    rows = [[name, *(f"{share[name, tokens]:.3f}" for tokens in shown)] for name in caches if name != "dense"]
    return markdown_table(["bytes / bytes in bf16, at tokens", *(f"{tokens:,}" for tokens in shown)], rows)


def step_table(entries: Entries) -> str:
    """
    Decode attention of one layer, 8 KV heads of 128 dimensions. bf16 and fp32 are SDPA on the dense cache, the faster
    of two ways to call it: all query heads side by side, as transformers does, or those of a KV head as rows of one
    problem. KIVI-2 is the outer grouping in the same kernel: the same words and the same unpacking loop, but a scale
    belongs to one number of the sum, so it is multiplied into queries and weights for every tile. That work is what
    the inner grouping saves; our version of it is plain compiled code, so its time is an upper bound.
    """
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
    """
    Bytes that a step must read, over its time, over what the threads read when they do nothing else. Nothing here is
    limited by memory on a CPU: on packed data each number has to be shifted, masked, converted and multiplied by every
    query that shares it, while there are several times fewer bytes to wait for.
    """
    columns = {"32,768 tokens, batch 1": "{attention}", "bytes moved": "{bytes:,}", "s": "{seconds:.5f}"}
    cell = [entry for entry in entries if (entry["batch"], entry["tokens"], entry["ratio"]) == (1, 32768, 4)]
    return entries_table(columns | {"of the memory's bandwidth": "{of_bandwidth:.0%}"}, cell)


def cached_step_table(entries: Entries) -> str:
    """
    A layer's whole step, appending a token included, against transformers' QuantizedCache at 4 bits, which dequantizes
    everything each time. `dense` and QuantizedCache attend as transformers calls SDPA, which on a CPU is the slower of
    the two ways above, so a part of these factors is not the cache's.
    """
    columns = {f"step at {entries[0]['tokens']:,} tokens": "{cache}", "s": "{seconds:.5f}"}
    quantized = [entry["cache"] for entry in entries if entry["cache"].startswith("QuantizedCache")]
    return entries_table(columns | {f"over {peer}": f"{{over[{peer}]:.1f}}x" for peer in quantized}, entries)


def decode_table(entries: Entries) -> str:
    """The whole recall model, decoding."""
    columns = {f"at {entries[0]['tokens']:,} tokens": "{cache}", "s per token": "{seconds_per_token:.5f}"}
    return entries_table(columns | {"tokens/s": "{tokens_per_second:.0f}", "over dense": "{over_dense:.2f}x"}, entries)


def recall_table(entries: Entries) -> str:
    """
    Right answers of the recall model to needles in real text. All caches are filled with the same exact keys and
    values, as a prefill would. It does not tell the variants of InnerQ apart: they lie within each other's intervals.
    """
    columns = {f"recall at {entries[0]['tokens']:,} tokens": "{cache}", "right": "{rate:.2%}"}
    columns |= {"95 % interval": "{interval_95[0]:.2%} - {interval_95[1]:.2%}", "questions": "{total:,}"}
    return entries_table(columns, entries)


def perplexity_table(entries: Entries) -> str:
    """
    Held-out text: the second half of each window reads what the cache kept of the first half, and of its own tokens
    once they leave the exact window. KIVI-2 has its own windows (128 recent tokens, no sinks) unless said otherwise.
    """
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
    """Relative L2, for the last 32 queries of a document."""
    layers = range(len(entries[0]["error_by_layer"]))
    columns = {f"{entries[0]['tokens']:,} tokens": "{cache}"}
    columns |= {f"layer {layer}": f"{{error_by_layer[{layer}]:.1%}}" for layer in layers}
    return entries_table(columns, [entry for entry in entries if entry["cache"] != "dense"])


TABLES = (
    Table("Bytes", ("bytes",), bytes_table),
    Table("Decode attention", ("step",), step_table),
    Table("Roofline", ("step",), roofline_table),
    Table("A layer's whole step", ("cached_step",), cached_step_table),
    Table("Decoding", ("decode",), decode_table),
    Table("Right answers", ("recall",), recall_table),
    Table("Perplexity", ("perplexity",), perplexity_table),
    Table("Error of attention's output by layer", ("errors",), errors_table),
)
