"""The tables of docs/remix.md, from the file of results."""

from collections.abc import Callable
from typing import Any

from ..documents import markdown_table, place_note
from .curves import forwards_at

Entries = list[dict[str, Any]]

WITHIN = 0.005  # of the accuracy of one token per step: what counts as not lower


def curve(entries: Entries, task: str, strategy: str) -> list[tuple[float, float]]:
    """Points (forwards, accuracy) of a strategy."""
    return [(e["forwards"], e["rate"]) for e in entries if e["task"] == task and e["strategy"] == strategy]


def tasks(entries: Entries) -> list[str]:
    return list(dict.fromkeys(entry["task"] for entry in entries))


def targets_table(entries: Entries) -> str:
    """For every kind of puzzle, the fewest forwards of each strategy that keep one token per step's accuracy."""
    rows = []
    for task in tasks(entries):
        ((most, accuracy),) = curve(entries, task, "one")
        for strategy in ("top_k", "confidence", "remix"):
            kept = [
                entry
                for entry in entries
                if entry["task"] == task
                and entry["strategy"] == strategy
                and entry["over_one"]["difference"] >= -WITHIN - 1e-9
            ]
            if not kept:
                rows.append([task, strategy, f"{100 * accuracy:.1f} %", "none", "", "", ""])
                continue
            best = min(kept, key=lambda entry: entry["forwards"])
            over = best["over_one"]
            rows.append(
                [task, strategy, f"{100 * accuracy:.1f} %", best["point"].removeprefix(f"{strategy} ")]
                + [f"{100 * over['difference']:+.1f} ± {100 * over['half_interval_95']:.1f}"]
                + [f"{best['forwards']:.2f}", f"{most / best['forwards']:.1f}x"]
            )
    header = ["puzzles", "strategy", "one token per step", "setting", "points over that", "forwards", "fewer"]
    return markdown_table(header, rows)


def curves_table(entries: Entries) -> str:
    """Accuracy and forwards of every point."""
    names = tasks(entries)
    found = {(entry["point"], entry["task"]): entry for entry in entries}
    rows = [
        [point, *(cell for task in names for cell in _solved_and_forwards(found[point, task]))]
        for point in dict.fromkeys(entry["point"] for entry in entries)
    ]
    return markdown_table(["", *(cell for task in names for cell in (f"{task}, solved", "forwards"))], rows)


def equal_table(entries: Entries) -> str:
    """At each of ReMix's points: the forwards that confidence needs for the same accuracy."""
    rows = []
    for task in tasks(entries):
        theirs = curve(entries, task, "confidence")
        for entry in entries:
            if entry["task"] != task or entry["strategy"] != "remix":
                continue
            needed = forwards_at(theirs, entry["rate"])
            ratio = f"{needed / entry['forwards']:.2f}x" if needed else "-"
            cells = [f"{100 * entry['rate']:.1f} %", f"{entry['forwards']:.2f}"]
            rows.append([task, f"{entry['tau_conf']}", *cells, f"{needed:.2f}" if needed else "not reached", ratio])
    header = ["puzzles", "tau_conf", "ReMix solves", "in forwards", "confidence needs", "ratio"]
    return markdown_table(header, rows)


def ablations_table(entries: Entries) -> str:
    names = tasks(entries)
    found = {(entry["setting"], str(entry["value"]), entry["task"]): entry for entry in entries}
    rows = []
    for setting, value in dict.fromkeys((entry["setting"], str(entry["value"])) for entry in entries):
        cells = [found.get((setting, value, task)) for task in names]
        shown = [_solved_and_forwards(cell) if cell else ("", "") for cell in cells]
        rows.append([f"{setting} {value}", *(text for pair in shown for text in pair)])
    return markdown_table(["", *(cell for task in names for cell in (f"{task}, solved", "forwards"))], rows)


def forwards_table(entries: Entries) -> str:
    rows = [
        [entry["model"], str(entry["batch"]), str(entry["length"])]
        + [f"{1e3 * entry['seconds'][name]:.2f}" for name in ("confidence", "remix")]
        + [f"{entry['remix_over_confidence']:.3f}x"]
        for entry in entries
    ]
    return markdown_table(["model", "batch", "answer", "confidence, ms", "ReMix, ms", "ratio"], rows)


def answers_table(entries: Entries) -> str:
    one = {entry["task"]: entry["seconds"] for entry in entries if entry["point"] == "one"}
    rows = [
        [entry["task"], entry["point"], f"{entry['forwards']:.2f}", f"{1e3 * entry['seconds']:.1f}"]
        + [f"{one[entry['task']] / entry['seconds']:.1f}x"]
        for entry in entries
    ]
    return markdown_table(["one puzzle at a time", "strategy", "forwards", "ms", "faster than one"], rows)


def _solved_and_forwards(entry: dict[str, Any]) -> tuple[str, str]:
    low, high = (100 * bound for bound in entry["interval_95"])
    return f"{100 * entry['rate']:.1f} % ({low:.1f}-{high:.1f})", f"{entry['forwards']:.2f}"


TABLES: dict[str, tuple[str, Callable[[Entries], str]]] = {
    "remix-targets": ("curves", targets_table),
    "remix-equal": ("curves", equal_table),
    "remix-curves": ("curves", curves_table),
    "remix-hard-equal": ("hard", equal_table),
    "remix-hard-curves": ("hard", curves_table),
    "remix-ablations": ("ablations", ablations_table),
    "remix-masks": ("masks", curves_table),
    "remix-forwards": ("forwards", forwards_table),
    "remix-answers": ("answers", answers_table),
}


def blocks(results: dict[str, Any]) -> dict[str, str]:
    """Every table whose part was measured."""
    made = {}
    for mark, (part, table) in TABLES.items():
        if part in results:
            made[mark] = table(results[part]["entries"]) + "\n\n" + place_note(results[part]["where"])
    return made
