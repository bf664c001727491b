"""The picture of the results: what a call costs at each depth, by ours and by what else there is."""

from typing import TYPE_CHECKING

from ..pictures import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def calls(part: dict) -> "Figure":
    """Milliseconds of a call over depth, a line per way."""
    figure, ((axis,),) = panels(1, 1)
    for name, milliseconds in part["milliseconds_by_depth"].items():
        axis.plot(milliseconds, marker=".", label=name, linewidth=2.5 if name == "hf_infeco" else 1)
    axis.set(xlabel="depth", ylabel="ms", yscale="log", title=f"{part['items']:,} items")
    axis.legend(fontsize="small")
    return figure
