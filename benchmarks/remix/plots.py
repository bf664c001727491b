"""Accuracy over forwards, a panel per kind of puzzle."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .report import curve, tasks

PANEL = (4.2, 3.4)  # inches


def curves(entries: list[dict[str, Any]]) -> Figure:
    """A line per strategy: up and to the left is better."""
    names = tasks(entries)
    figure = Figure(figsize=(PANEL[0] * len(names), PANEL[1]), layout="constrained")
    for axis, task in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        for strategy in dict.fromkeys(entry["strategy"] for entry in entries):
            line = sorted(curve(entries, task, strategy))
            axis.plot([x for x, _ in line], [100 * y for _, y in line], marker=".", label=strategy)
        axis.set_xscale("log", base=2)
        axis.set(title=task, xlabel="forwards", ylabel="solved, %")
        axis.legend(fontsize="small")
    return figure


def draw_all(results: dict[str, Any], out: Path) -> list[Path]:
    """One picture per measured part of curves; they lie beside `out`."""
    paths = []
    for part in ("curves", "hard", "masks"):
        if part in results:
            paths.append(out.with_name(f"{out.stem}_{part}.png"))
            curves(results[part]["entries"]).savefig(paths[-1], dpi=120)
    return paths
