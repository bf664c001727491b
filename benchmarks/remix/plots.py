"""Accuracy over forwards, a panel per kind of puzzle."""

from typing import TYPE_CHECKING, Any

from ..pictures import panels
from .report import curve, tasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves(entries: list[dict[str, Any]]) -> "Figure":
    """Puzzles solved over forwards, a line per strategy: up and to the left is better."""
    names = tasks(entries)
    figure, (axes,) = panels(1, len(names))
    for axis, task in zip(axes, names):
        for strategy in dict.fromkeys(entry["strategy"] for entry in entries):
            line = sorted(curve(entries, task, strategy))
            axis.plot([x for x, _ in line], [100 * y for _, y in line], marker=".", label=strategy)
        axis.set_xscale("log", base=2)
        axis.set(title=task, xlabel="forwards", ylabel="solved, %")
        axis.legend(fontsize="small")
    return figure
