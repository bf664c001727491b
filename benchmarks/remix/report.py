"""The tables of ReMix, from the file of results."""

from typing import Any

from ..documents import Table, markdown_table
from .curves import forwards_at

Entries = list[dict[str, Any]]

WITHIN = 0.005  # of the accuracy of one token per step: what counts as not lower


def curve(entries: Entries, task: str, strategy: str) -> list[tuple[float, float]]:
    """Points (forwards, accuracy) of a strategy."""
    return [(e["forwards"], e["rate"]) for e in entries if e["task"] == task and e["strategy"] == strategy]


def tasks(entries: Entries) -> list[str]:
    return list(dict.fromkeys(entry["task"] for entry in entries))


def targets_table(entries: Entries, strategies: tuple[str, ...] = ("top_k", "confidence", "remix")) -> str:
    """
    Of each strategy the fastest setting that is within half a point of one token per step. Points over that are
    differences on the same puzzles with 95 % intervals.
    """
    rows = []
    for task in tasks(entries):
        ((most, accuracy),) = curve(entries, task, "one")
        for strategy in strategies:
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


def brief_table(entries: Entries) -> str:
    """The two strategies that decide by confidence."""
    return targets_table(entries, ("confidence", "remix"))


def curves_table(entries: Entries) -> str:
    """Puzzles solved, with 95 % Wilson intervals, and forwards."""
    names = tasks(entries)
    found = {(entry["point"], entry["task"]): entry for entry in entries}
    rows = [
        [point, *(cell for task in names for cell in _solved_and_forwards(found[point, task]))]
        for point in dict.fromkeys(entry["point"] for entry in entries)
    ]
    return markdown_table(["", *(cell for task in names for cell in (f"{task}, solved", "forwards"))], rows)


def equal_table(entries: Entries) -> str:
    """The forwards that confidence needs for what ReMix solves, on straight lines between its settings."""
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
    """
    On Sudokus of four clues with `tau_conf=0.99`, the others at their defaults. `beta 0.0` is the confidence strategy.
    """
    names = tasks(entries)
    found = {(entry["setting"], str(entry["value"]), entry["task"]): entry for entry in entries}
    rows = []
    for setting, value in dict.fromkeys((entry["setting"], str(entry["value"])) for entry in entries):
        cells = [found.get((setting, value, task)) for task in names]
        shown = [_solved_and_forwards(cell) if cell else ("", "") for cell in cells]
        rows.append([f"{setting} {value}", *(text for pair in shown for text in pair)])
    return markdown_table(["", *(cell for task in names for cell in (f"{task}, solved", "forwards"))], rows)


def forwards_table(entries: Entries) -> str:
    """
    Median of runs in turn, nothing ever sure enough and every position mixed at every step, the dearest case. The wide
    model is random: 12 layers, 768 wide, 32,000 tokens.
    """
    rows = [
        [entry["model"], str(entry["batch"]), str(entry["length"])]
        + [f"{1e3 * entry['seconds'][name]:.2f}" for name in ("confidence", "remix")]
        + [f"{entry['remix_over_confidence']:.3f}x"]
        for entry in entries
    ]
    return markdown_table(["model", "batch", "answer", "confidence, ms", "ReMix, ms", "ratio"], rows)


def answers_table(entries: Entries) -> str:
    """One puzzle at a time."""
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


TABLES = (
    Table("Fewest forwards at the accuracy of one token per step", ("curves",), targets_table),
    Table("ReMix against the confidence threshold", ("curves",), equal_table),
    Table("All points", ("curves",), curves_table),
    Table("Sudokus of four clues: ReMix against the confidence threshold", ("hard",), equal_table),
    Table("Sudokus of four clues: all points", ("hard",), curves_table),
    Table("Settings of ReMix", ("ablations",), ablations_table),
    Table("A forward", ("forwards",), forwards_table),
    Table("An answer", ("answers",), answers_table),
)
QUOTES = {"docs/remix.md": Table("Fewest forwards", ("curves",), brief_table)}
