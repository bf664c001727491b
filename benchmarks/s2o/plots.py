"""Pictures of the results: error over density and time over length."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..pictures import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def errors(entries: list[dict]) -> "Figure":
    """Mean squared error over density, a panel per input and length, a line per rule."""
    cells = _grouped(entries, "input", "tokens")
    figure, axes = panels(1, len(cells))
    for axis, ((name, tokens), panel) in zip(axes[0], cells.items()):
        for (rule,), line in _grouped(panel, "rule").items():
            points = sorted((entry["density"], entry["mse"]) for entry in line)
            axis.plot(*zip(*points), marker=".", label=rule, linewidth=2.5 if rule == "S2O" else 1)
        axis.set(title=f"{name}, {tokens:,} tokens", xlabel="visited pairs / causal pairs", yscale="log")
    axes[0][0].set_ylabel("mean squared error")
    axes[0][-1].legend(fontsize="small")
    return figure


def times(entries: list[dict]) -> "Figure":
    """Seconds in bfloat16 over length, a panel per input, a line for dense attention and one per error point."""
    cells = _grouped((entry for entry in entries if entry["dtype"] == "bfloat16"), "input")
    figure, (axes,) = panels(1, len(cells))
    for axis, ((name,), panel) in zip(axes, cells.items()):
        dense = sorted({(entry["tokens"], entry["dense_seconds"]) for entry in panel})
        axis.plot(*zip(*dense), marker=".", color="black", label="dense")
        for (point,), line in _grouped(panel, "point").items():
            taken = sorted((entry["tokens"], entry["s2o_seconds"]) for entry in line)
            axis.plot(*zip(*taken), marker=".", label=f"S2O, error {100 * point:g} %")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set(title=name, xlabel="tokens", ylabel="seconds")
        axis.legend(fontsize="small")
    return figure


def _grouped(entries: Iterable[dict], *names: str) -> dict[tuple, list[dict]]:
    """The entries by their values of `names`, in the order in which these first come."""
    groups: dict[tuple, list[dict]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry[name] for name in names), []).append(entry)
    return groups
