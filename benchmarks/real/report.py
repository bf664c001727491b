"""The tables of docs/real.md and the one of README.md, from the file of results."""

from collections.abc import Callable
from statistics import mean

from ..documents import markdown_table, place_note

Entries = list[dict]
SHORT = ("dense", "S2O", "InnerQ K4V3", "S2O, InnerQ K4V3", "InnerQ base", "InnerQ small")  # of the README's rows


def blocks(results: dict) -> dict[str, str]:
    """Name of the mark in docs/real.md: its table with a note, for each part that was measured."""
    tables = {
        f"real-{part}": (draw(*(results[name]["entries"] for name in needed)), _notes(results, *needed))
        for part, (needed, draw) in TABLES.items()
        if all(name in results for name in needed)
    }
    return {mark: f"{table}\n\n{notes}" for mark, (table, notes) in tables.items()}


def readme_block(results: dict) -> str:
    """What S2O and InnerQ cost the real model, in one table."""
    text, lookup = (results[part]["entries"] for part in ("text", "lookup"))
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
    return f"{markdown_table(['', *header], rows)}\n\n{_notes(results, 'text', 'lookup')}"


def text_table(entries: Entries) -> str:
    """A row per way: at each length perplexity, its change with one standard error, and divergence from dense."""
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
    """A row per way: right answers for each task and length, and of those that dense gets right."""
    cells = _distinct(entries, "task", "tokens")
    found = {(entry["way"], entry["task"], entry["tokens"]): entry for entry in entries}
    rows = [
        [way, *(f"{_of('correct', entry)} ({entry['right_in_both']} of {entry['right_in_dense']})" for entry in line)]
        for way in _distinct(entries, "way")
        for line in [[found[way, *cell] for cell in cells]]
    ]
    return markdown_table(["way", *(f"{task}, {tokens:,} tokens" for task, tokens in cells)], rows)


def answers_table(entries: Entries) -> str:
    new, texts = entries[0]["new_tokens"], entries[0]["texts"]
    rows = [
        [entry["way"], f"{entry['equal_answers']} of {texts}", f"{entry['equal_tokens']:.1f} of {new}"]
        for entry in entries
    ]
    header = f"answers to texts of {entries[0]['tokens']:,} tokens"
    return markdown_table([header, f"first {new} tokens equal", "equal before the first other token"], rows)


def layers_table(entries: Entries) -> str:
    """A row per layer, and their means."""
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
    """A row per length and tau: what it costs the model, and what the operator gains by it."""
    times = {(entry["tokens"], entry["tau"]): entry for entry in speed}
    rows = []
    for entry in quality:
        row = [
            f"{entry['tokens']:,}",
            f"{entry['tau']:g}",
            f"{entry['density']:.3f}",
            _change(entry),
            f"{entry['kl']:.4f}",
        ]
        if timed := times.get((entry["tokens"], entry["tau"])):
            row += [f"{100 * timed['error']:.1f} %", f"{timed['dense_seconds']:.3f}", f"{timed['s2o_seconds']:.3f}"]
            row.append(f"**{timed['speedup']:.2f}x**")
        rows.append(row + [""] * (9 - len(row)))  # not timed
    header = ["tokens", "tau", "density", "perplexity", "KL", "error of attention"]
    return markdown_table([*header, "dense, s", "S2O, s", "over the faster dense dtype"], rows)


def caches_table(text: Entries, lookup: Entries) -> str:
    """A row per cache, by bits: divergence and perplexity of text behind it, and what is found again through it."""
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


def padding_table(entries: Entries) -> str:
    found = {(entry["way"], entry["pads"]): entry["kl"] for entry in entries}
    pads = _distinct(entries, "pads")
    rows = [[way, *(f"{found[way, count]:.4f}" for count in pads)] for way in _distinct(entries, "way")]
    return markdown_table(["KL of the next tokens", *(f"{count} pads" for count in pads)], rows)


# Name of the mark: the parts of the results that it shows, and how.
TABLES: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {
    "text": (("text",), text_table),
    "steps": (("steps",), text_table),
    "lookup": (("lookup",), lookup_table),
    "answers": (("answers",), answers_table),
    "taus": (("taus", "speed"), taus_table),
    "layers": (("layers",), layers_table),
    "caches": (("cache_text", "cache_lookup"), caches_table),
    "padding": (("padding",), padding_table),
}


def _distinct(entries: Entries, *keys: str) -> list:
    """What stands under the keys, in order, each once."""
    return list(dict.fromkeys(entry[keys[0]] if len(keys) == 1 else tuple(map(entry.get, keys)) for entry in entries))


def _change(entry: dict) -> str:
    return f"{100 * entry['over_dense']:+.2f} % ± {100 * entry['error']:.2f}"


def _of(key: str, entry: dict) -> str:
    return f"{entry[key]} of {entry['total']}"


def _notes(results: dict, *parts: str) -> str:
    """Where each part of a table was measured, that of its first columns first."""
    return "\n\n".join(_note(results[part]["where"]) for part in parts)


def _note(where: dict) -> str:
    load = f" Load average when it began: {where['load']}." if "load" in where else ""
    return f"{where['model']}; {place_note(where)}{load}"
