"""The tables of a real model, those of other pages among them, from the file of results."""

from statistics import mean

from ..documents import Table, entries_table, markdown_table

Entries = list[dict]
SHORT = ("dense", "S2O", "InnerQ", "S2O, InnerQ", "InnerQ balanced", "InnerQ size")  # of the README's rows


def brief_table(text: Entries, lookup: Entries) -> str:
    """What S2O and InnerQ cost the real model."""
    lengths = _distinct(text, "tokens")
    shortest = min(entry["tokens"] for entry in lookup)
    asked = [cell for cell in _distinct(lookup, "task", "tokens") if cell[1] == shortest]  # of these there are most
    scores = {(entry["way"], entry["tokens"]): entry for entry in text}
    found = {(entry["way"], entry["task"], entry["tokens"]): entry for entry in lookup}
    rows = [
        [
            way,
            *(
                _change(scores[way, at]) if way != "dense" else f"{scores[way, at]['perplexity']:.2f}"
                for at in lengths
            ),
        ]
        + [_of("correct", found[way, *cell]) for cell in asked]
        for way in SHORT
    ]
    header = [f"perplexity, {tokens:,} tokens" for tokens in lengths] + [
        f"{task}, {at:,} tokens" for task, at in asked
    ]
    return markdown_table(["", *header], rows)


def presets_table(text: Entries, lookup: Entries) -> str:
    """Dense and InnerQ's presets: what they take, and what the real model loses by it."""
    at = max(entry["tokens"] for entry in text)
    shortest = min(entry["tokens"] for entry in lookup)
    found = {(entry["way"], entry["task"]): entry for entry in lookup if entry["tokens"] == shortest}
    rows = [
        [entry["way"], f"{entry['bits']:g}", f"{entry['of_dense_bytes']:.3f}x", f"{entry['kl']:.4f}"]
        + [_change(entry) if entry["way"] != "dense" else f"{entry['perplexity']:.2f}"]
        + [_of("correct", found[entry["way"], task]) for task in ("passkey", "pairs")]
        for entry in text
        if entry["tokens"] == at and entry["way"].startswith(("dense", "InnerQ"))
    ]
    header = ["cache", "bits", f"bytes, {at:,} tokens", "KL", "perplexity"]
    return markdown_table([*header, *(f"{task}, {shortest:,} tokens" for task in ("passkey", "pairs"))], rows)


def text_table(entries: Entries) -> str:
    """
    The first half of a window is read as a prompt, the second half in one forward through the cache of the first.
    Bytes are those of the cache objects, spare room and exact windows included. In brackets the change in perplexity
    with one standard error, paired by token; KL is the divergence from the dense model, nats per token.
    """
    lengths = _distinct(entries, "tokens")
    found = {(entry["way"], entry["tokens"]): entry for entry in entries}
    rows = []
    for way in _distinct(entries, "way"):
        cells = [found[way, tokens] for tokens in lengths]
        shown = [
            f"{cell['perplexity']:.3f}" + (f" ({_change(cell)}), KL {cell['kl']:.4f}" if way != "dense" else "")
            for cell in cells
        ]
        rows.append([way, f"{cells[-1]['bits']:g}", f"{cells[-1]['of_dense_bytes']:.3f}x", *shown])
    header = [f"{tokens:,} tokens, {found['dense', tokens]['scored']:,} scored" for tokens in lengths]
    return markdown_table(["way", "bits", f"bytes, {lengths[-1]:,} tokens", *header], rows)


def lookup_table(entries: Entries) -> str:
    """
    *Passkey*: one code of five digits, said once in filler. *Pairs*: eight codes with names, each said once in the
    text, all asked for. An answer counts if greedy decoding gives all of its digits. In brackets: of the answers that
    the dense model gets right.
    """
    cells = _distinct(entries, "task", "tokens")
    found = {(entry["way"], entry["task"], entry["tokens"]): entry for entry in entries}
    rows = [
        [way, *(f"{_of('correct', entry)} ({entry['right_in_both']} of {entry['right_in_dense']})" for entry in line)]
        for way in _distinct(entries, "way")
        for line in [[found[way, *cell] for cell in cells]]
    ]
    return markdown_table(["way", *(f"{task}, {tokens:,} tokens" for task, tokens in cells)], rows)


def answers_table(entries: Entries) -> str:
    """
    Greedy answers to a request for a summary, against the dense model's own. The dense row is the same model that is
    fed its answer in pieces instead of token by token: what rounding in bfloat16 does by itself.
    """
    columns = {f"answers to texts of {entries[0]['tokens']:,} tokens": "{way}"}
    columns |= {f"first {entries[0]['new_tokens']} tokens equal": "{equal_answers} of {texts}"}
    columns |= {"equal before the first other token": "{equal_tokens:.1f} of {new_tokens}"}
    return entries_table(columns, entries)


def layers_table(entries: Entries) -> str:
    """
    At the default `tau`, on the model's heads in float32. The estimate of the missed mass is what `report` shows; the
    true one is measured.
    """
    lengths = _distinct(entries, "tokens")
    keys = ("density", "missed", "truly_missed", "error")
    by_length = {tokens: [entry for entry in entries if entry["tokens"] == tokens] for tokens in lengths}

    def cells(layer: dict[str, float]) -> list[str]:
        return [f"{layer['density']:.3f}", *(f"{100 * layer[key]:.2f} %" for key in keys[1:])]

    rows = [
        [str(layers[0]["layer"]), *(cell for layer in layers for cell in cells(layer))]
        for layers in zip(*by_length.values())
    ]
    means = [{key: mean(layer[key] for layer in layers) for key in keys} for layers in by_length.values()]
    rows.append(["mean", *(cell for each in means for cell in cells(each))])
    names = ("density", "missed, estimate", "missed, true", "error")
    return markdown_table(["layer", *(f"{name}, {tokens:,}" for tokens in lengths for name in names)], rows)


def taus_table(quality: Entries, speed: Entries) -> str:
    """
    Perplexity of the second half of a window that is read in one forward; error and time of the operator in bfloat16
    on the heads of every third layer of the model, against the faster of dense float32 and bfloat16.
    """
    columns = {"tokens": "{tokens:,}", "tau": "{tau:g}", "density": "{density:.3f}"}
    columns |= {"perplexity": "{change}", "KL": "{kl:.4f}", "error of attention": "{lost}"}
    columns |= {"dense, s": "{dense}", "S2O, s": "{s2o}", "over the faster dense dtype": "{over}"}
    untimed = dict.fromkeys(("lost", "dense", "s2o", "over"), "")
    timed = {
        (entry["tokens"], entry["tau"]): {
            **{"lost": f"{entry['error']:.1%}", "over": f"**{entry['speedup']:.2f}x**"},
            **{"dense": f"{entry['dense_seconds']:.3f}", "s2o": f"{entry['s2o_seconds']:.3f}"},
        }
        for entry in speed
    }
    found = [timed.get((entry["tokens"], entry["tau"]), untimed) for entry in quality]
    return entries_table(columns, [a | b | {"change": _change(a)} for a, b in zip(quality, found)])


def caches_table(text: Entries, lookup: Entries) -> str:
    """
    All caches are given the same exact keys and values of a prompt. Bits are per packed number, scales included.
    TurboQuant stands for a random rotation, Lloyd-Max levels and one norm per token
    (`benchmarks/innerq/turboquant.py`), in the exact windows that InnerQ has; KIVI-2 is run with its own windows (128
    recent tokens) and with InnerQ's. QuantizedCache quantizes all of a prompt, its last tokens too.
    """
    cells = _distinct(lookup, "task", "tokens")
    found = {(entry["way"], entry["task"], entry["tokens"]): entry for entry in lookup}
    rows = [
        [entry["way"], f"{entry['bits']:g}"]
        + ([f"{entry['kl']:.4f}", _change(entry)] if entry["way"] != "dense" else ["", ""])
        + [_of("correct", found[entry["way"], *cell]) for cell in cells]
        for entry in sorted(text, key=lambda entry: -entry["bits"])
    ]
    header = ["cache", "bits", f"KL, {text[0]['tokens']:,} tokens", "perplexity"]
    return markdown_table([*header, *(f"{task}, {tokens:,} tokens" for task, tokens in cells)], rows)


def lengths_table(entries: Entries) -> str:
    """
    A whole prompt read in one forward and then decoded token by token, dense and patched with all defaults, after
    `warm_up`: medians of one run, in which the ways take turns.
    """
    found = {(entry["tokens"], entry["way"]): entry for entry in entries}
    cells = {"prefill": "{prefill_seconds:.2f} s", "a token": "{step_seconds:.3f} s", "cache": "{mib:.1f} MiB"}
    rows = [
        [f"{tokens:,}"]
        + [
            cell.format_map(entry | {"mib": entry["bytes"] / 2**20})
            for cell in cells.values()
            for entry in (found[tokens, "dense"], found[tokens, "patched"])
        ]
        for tokens in _distinct(entries, "tokens")
    ]
    return markdown_table(["tokens", *(f"{what}, {way}" for what in cells for way in ("dense", "patched"))], rows)


def padding_table(entries: Entries) -> str:
    """
    Rows of 300 tokens of text behind so many pads; KL of the next 12 tokens from the dense model without padding.
    """
    found = {(entry["way"], entry["pads"]): entry["kl"] for entry in entries}
    pads = _distinct(entries, "pads")
    rows = [[way, *(f"{found[way, count]:.4f}" for count in pads)] for way in _distinct(entries, "way")]
    return markdown_table(["KL of the next tokens", *(f"{count} pads" for count in pads)], rows)


def _distinct(entries: Entries, *keys: str) -> list:
    """What stands under the keys, in order, each once."""
    return list(dict.fromkeys(entry[keys[0]] if len(keys) == 1 else tuple(map(entry.get, keys)) for entry in entries))


def _change(entry: dict) -> str:
    return f"{100 * entry['over_dense']:+.2f} % ± {100 * entry['error']:.2f}"


def _of(key: str, entry: dict) -> str:
    return f"{entry[key]} of {entry['total']}"


def steps_table(entries: Entries) -> str:
    """
    The last tokens of a window, one at a time, which InnerQ attends on packed data. So few tokens say little about
    perplexity; read the KL.
    """
    return text_table(entries)


TABLES = (
    Table("A prompt of each length", ("lengths",), lengths_table),
    Table("Text behind a prompt", ("text",), text_table),
    Table("Token by token", ("steps",), steps_table),
    Table("Finding things again", ("lookup",), lookup_table),
    Table("Greedy answers", ("answers",), answers_table),
    Table("Where tau stops being safe", ("taus", "speed"), taus_table),
    Table("S2O by layer", ("layers",), layers_table),
    Table("Caches at equal bytes", ("cache_text", "cache_lookup"), caches_table),
    Table("Left padding", ("padding",), padding_table),
)
BRIEF = Table("A real model", ("text", "lookup"), brief_table)
QUOTES = {
    "README.md": BRIEF,
    "docs/real.md": BRIEF,
    "docs/innerq.md": Table("InnerQ's presets", ("text", "lookup"), presets_table),
}
