"""The tables of docs/s2o.md, from the file of results."""

from collections.abc import Callable

from ..documents import markdown_table, place_note

Entries = list[dict]


def blocks(results: dict) -> dict[str, str]:
    """Name of the mark in the document: its table with a note, for each part that was measured."""
    parts = {f"s2o-{part}": part for part in TABLES if part in results}
    return {
        mark: f"{TABLES[part](results[part]['entries'])}\n\n{place_note(results[part]['where'])}"
        for mark, part in parts.items()
    }


def speed_table(entries: Entries) -> str:
    """A row per input, length, dtype and tau: where the loosest tau reaches several points, they share it."""
    distinct = {(entry["input"], entry["tokens"], entry["dtype"], entry["tau"]): entry for entry in entries}
    rows = [
        [name, f"{tokens:,}", dtype, f"{tau:.2g}", f"{100 * entry['error']:.1f} %", f"{entry['density']:.3f}"]
        + [f"{100 * entry['missed']:.1f} %, {100 * entry['truly_missed']:.1f} %"]
        + [f"{entry['dense_seconds']:.3f}", f"{entry['s2o_seconds']:.3f}", f"**{entry['speedup']:.2f}x**"]
        + [f"{100 * entry['ranking_share']:.0f} %"]
        for (name, tokens, dtype, tau), entry in distinct.items()
    ]
    header = ["input", "tokens", "dtype", "tau", "error", "density", "missed: estimate, true", "dense, s", "S2O, s"]
    return markdown_table([*header, "over the faster dense dtype", "cutting, of S2O's time"], rows)


def short_table(entries: Entries) -> str:
    rows = [
        [
            f"{entry['tokens']:,}",
            f"{1e3 * entry['dense']:.2f}",
            f"{1e3 * entry['s2o']:.2f}",
            f"{entry['over_dense']:.3f}",
        ]
        + ["dense" if entry["density"] == 1 else f"sparse, density {entry['density']:.3f}"]
        for entry in entries
    ]
    return markdown_table(["tokens", "dense, ms", "defaults, ms", "of the dense time", "what ran"], rows)


def error_table(entries: Entries) -> str:
    rows = [
        [entry["input"], f"{entry['tokens']:,}", f"{100 * entry['error']:.1f} %", f"{100 * entry['worst_head']:.1f} %"]
        + [f"{entry['density']:.3f}", f"{entry['found']} / {entry['needles']}" if "needles" in entry else ""]
        for entry in entries
    ]
    return markdown_table(["defaults, input", "tokens", "error", "worst head", "density", "needles found"], rows)


def rules_table(entries: Entries) -> str:
    """Mean squared error of each rule, as a multiple of S2O's at the same density or less."""
    cells: dict[tuple, dict[str, dict]] = {}
    own: dict = {}
    for entry in entries:
        own = entry if entry["rule"] == "S2O" else own
        cells.setdefault((entry["input"], entry["tokens"], own["knob"]), {})[entry["rule"]] = entry
    names = [name for name in next(iter(cells.values())) if name != "S2O"]
    rows = [
        [name, f"{tokens:,}", f"{cell['S2O']['density']:.3f}", f"{cell['S2O']['mse']:.2g}"]
        + [f"{cell[rule]['mse'] / cell['S2O']['mse']:.3g}x" for rule in names]
        for (name, tokens, _), cell in cells.items()
    ]
    return markdown_table(["input", "tokens", "density", "S2O's MSE", *names], rows)


def recall_table(entries: Entries) -> str:
    rows = [
        [entry["attention"], f"{entry['tokens']:,}", f"{entry['correct']:,} of {entry['total']:,}"]
        + ["{:.2f} - {:.2f} %".format(*(100 * share for share in entry["interval_95"]))]
        + [f"{entry['density']:.3f}" if "density" in entry else "1"]
        for entry in entries
    ]
    return markdown_table(["recall model, attention", "tokens", "right answers", "95 % interval", "density"], rows)


def perplexity_table(entries: Entries) -> str:
    dense = {entry["tokens"]: entry["perplexity"] for entry in entries if entry["attention"] == "dense"}
    rows = [
        [entry["attention"], f"{entry['tokens']:,}", f"{entry['perplexity']:.4f}"]
        + [f"{100 * (entry['perplexity'] / dense[entry['tokens']] - 1):+.2f} %"]
        for entry in entries
    ]
    return markdown_table(["held-out text, attention", "tokens", "perplexity", "against dense"], rows)


TABLES: dict[str, Callable[[Entries], str]] = {
    "speed": speed_table,
    "short": short_table,
    "error": error_table,
    "rules": rules_table,
    "recall": recall_table,
    "perplexity": perplexity_table,
}
