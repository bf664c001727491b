"""The picture of the results: what a cache loses over the bits that it takes."""

from typing import TYPE_CHECKING

from ..pictures import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def divergence(entries: list[dict]) -> "Figure":
    """KL from the dense model over bits per number, a mark per cache."""
    figure, ((axis,),) = panels(1, 1)
    for entry in entries:
        if entry["way"] != "dense":
            axis.scatter(entry["bits"], entry["kl"], marker="o" if entry["way"].startswith("InnerQ") else "x")
            axis.annotate(entry["way"], (entry["bits"], entry["kl"]), (4, 3), textcoords="offset points", fontsize=6)
    axis.set(
        xlabel="bits per number", ylabel="KL, nats per token", yscale="log", title=f"{entries[0]['tokens']:,} tokens"
    )
    axis.margins(x=0.25)
    return figure
