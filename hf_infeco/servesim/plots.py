"""Pictures of a simulation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .plan import Candidate


def distributions(results: Results) -> "Figure":
    """TTFT, time per token and latency: the share of requests that are faster, and requests at work over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3), layout="constrained")
    axes = figure.subplots(1, 4)
    metrics = results.metrics
    for axis, name, title in zip(axes, ("ttft", "tpot", "latency"), ("TTFT, s", "time per token, s", "latency, s")):
        values = np.sort(metrics[name])
        axis.step(values, np.arange(1, len(values) + 1) / len(values), where="post")
        axis.set(xlabel=title, ylabel="share of requests" if axis is axes[0] else "", ylim=(0, 1))
    ends = [(results.column("arrival"), 1), (results.column("last"), -1)]
    times = np.concatenate([at for at, _ in ends])
    order = np.argsort(times)
    steps = np.concatenate([np.full(len(at), step) for at, step in ends])[order]
    axes[3].step(times[order], np.cumsum(steps), where="post")
    axes[3].set(xlabel="s", ylabel="requests there")
    return figure


def pareto(candidates: Sequence["Candidate"]) -> "Figure":
    """Dollars per million tokens over the p99 of TTFT; those that keep the promise are filled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for each in candidates:
        if each.dollars_per_million is not None and each.summary is not None:
            x, y = each.summary["ttft"]["p99"], each.dollars_per_million
            axis.scatter(x, y, facecolors="none" if each.reasons else "C0", edgecolors="C0")
            axis.annotate(each.name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize="small")
    axis.set(xlabel="TTFT p99, s", ylabel="dollars per million output tokens", xscale="log", yscale="log")
    return figure
