"""TTFT of single requests, real and simulated."""

from typing import TYPE_CHECKING, Any

from ..pictures import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ttft(entries: list[dict[str, Any]]) -> "Figure":
    """TTFT of each request over its arrival: the engine's, and ours without calibration."""
    figure, (axes,) = panels(1, len(entries))
    for axis, entry in zip(axes, entries):
        axis.plot(entry["arrival_s"], entry["real_s"], label="vLLM", linewidth=3, alpha=0.4)
        axis.plot(entry["arrival_s"], entry["ours_s"], label="hf_infeco", linewidth=1)
        axis.set(title=entry["run"], xlabel="arrival, s", ylabel="TTFT, s")
        axis.title.set_fontsize("small")
        axis.legend(fontsize="small")
    return figure
