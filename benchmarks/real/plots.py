"""The pictures of the results: what a cache loses over its bits, and what a prompt of each length costs."""

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


def lengths(entries: list[dict]) -> "Figure":
    """Time to read a prompt, time of a token behind it, and bytes of the cache, over the prompt's length."""
    figure, (axes,) = panels(1, 3)
    shown = {"prefill_seconds": ("prefill, s", 1), "step_seconds": ("a decoded token, ms", 1e3)}
    shown["bytes"] = ("KV cache, MiB", 2**-20)
    for axis, (field, (label, factor)) in zip(axes, shown.items()):
        for way, color in (("dense", "tab:gray"), ("patched", "tab:blue")):
            line = [(entry["tokens"], factor * entry[field]) for entry in entries if entry["way"] == way]
            axis.plot(*zip(*line), marker="o", color=color, label=way)
        axis.set(xlabel="tokens of the prompt", title=label, ylim=(0, None))
        axis.set_xticks([entry["tokens"] for entry in entries if entry["way"] == "dense"])
    axes[0].legend()
    return figure
