"""Pictures of the results: time and bytes over length, perplexity over bits, error by layer."""

from typing import TYPE_CHECKING

from ..pictures import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DENSE = {"bf16": "black", "fp32": "gray", "dense": "black"}


def step(entries: list[dict]) -> "Figure":
    """Decode attention's time over length, batch 1, and the share of the memory's bandwidth; 4 heads per KV head."""
    figure, (axes,) = panels(1, 2)
    shown = [entry for entry in entries if entry["batch"] == 1 and entry["ratio"] == 4]
    for axis, field, factor, label in zip(axes, ("seconds", "of_bandwidth"), (1e3, 100), ("ms", "% of bandwidth")):
        for name in dict.fromkeys(entry["attention"] for entry in shown):
            line = sorted((e["tokens"], factor * e[field]) for e in shown if e["attention"] == name)
            axis.plot(*zip(*line), marker=".", label=name, color=DENSE.get(name))
        axis.set_xscale("log", base=2)
        axis.set(xlabel="tokens", ylabel=label)
    axes[0].set_yscale("log")
    axes[0].legend(fontsize="small")
    return figure


def sizes(entries: list[dict]) -> "Figure":
    """A cache's bytes over those of the dense one in bf16, over length."""
    figure, ((axis,),) = panels(1, 1)
    for name in dict.fromkeys(entry["cache"] for entry in entries if entry["cache"] != "dense"):
        line = sorted((entry["tokens"], entry["of_bf16"]) for entry in entries if entry["cache"] == name)
        axis.plot(*zip(*line), marker=".", label=name)
    axis.set_xscale("log", base=2)
    axis.set(xlabel="tokens", ylabel="bytes / bytes in bf16", ylim=(0, None))
    axis.legend(fontsize="small")
    return figure


def perplexity(entries: list[dict]) -> "Figure":
    """Perplexity above the dense cache's over bits per number, a panel per length."""
    lengths = sorted({entry["tokens"] for entry in entries})
    figure, (axes,) = panels(1, len(lengths))
    for axis, tokens in zip(axes, lengths):
        for entry in entries:
            if entry["tokens"] == tokens and "bits" in entry and entry["cache"] != "dense":
                axis.scatter(entry["bits"], 100 * entry["over_dense"], label=entry["cache"])
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=f"{tokens:,} tokens", xlabel="bits per number", ylabel="perplexity above dense, %")
        axis.legend(fontsize="small")
    return figure


def errors(entries: list[dict]) -> "Figure":
    """Relative error of the attention's output, by layer."""
    figure, ((axis,),) = panels(1, 1)
    for entry in entries:
        if entry["cache"] != "dense":
            axis.plot(entry["error_by_layer"], marker=".", label=entry["cache"])
    axis.set(xlabel="layer", ylabel="relative L2 error", yscale="log")
    axis.legend(fontsize="xx-small")
    return figure
