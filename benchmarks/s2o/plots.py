"""Pictures of the results: error over density, time over length, and which keys are visited."""

from collections.abc import Iterable
from pathlib import Path

import torch
from matplotlib.figure import Figure

from hf_infeco import S2OConfig
from hf_infeco.kernels.s2o.reference import s2o_prefill

from .inputs import Heads
from .operator import sparse
from .restricted import knob_at, query_heads
from .rules import RULES

GRANULE = 8  # keys of one pixel in the picture of what is visited
PANEL = (4.0, 3.2)  # inches


def draw_all(results: dict, heads: Heads, out: Path) -> list[Path]:
    """One picture per measured part, and one of what the rules visit in `heads`; they lie beside `out`."""
    records = {"S2O": own_visits(heads), **{name: rule_visits(rule, heads) for name, rule in RULES.items()}}
    figures = {"visits": visits(records)}
    if "rules" in results:
        figures["errors"] = errors(results["rules"]["entries"])
    if "speed" in results:
        figures["times"] = times(results["speed"]["entries"])
    paths = [out.with_name(f"{out.stem}_{name}.png") for name in figures]
    for figure, path in zip(figures.values(), paths):
        figure.savefig(path, dpi=120)
    return paths


def errors(entries: list[dict]) -> Figure:
    """Mean squared error over density, a panel per input and length, a line per rule."""
    panels = _grouped(entries, "input", "tokens")
    figure, axes = _panels(1, len(panels))
    for axis, ((name, tokens), panel) in zip(axes[0], panels.items()):
        for (rule,), line in _grouped(panel, "rule").items():
            points = sorted((entry["density"], entry["mse"]) for entry in line)
            axis.plot(*zip(*points), marker=".", label=rule, linewidth=2.5 if rule == "S2O" else 1)
        axis.set(title=f"{name}, {tokens:,} tokens", xlabel="visited pairs / causal pairs", yscale="log")
    axes[0][0].set_ylabel("mean squared error")
    axes[0][-1].legend(fontsize="small")
    return figure


def times(entries: list[dict]) -> Figure:
    """Seconds over length, a row per dtype, a panel per input, a line for dense attention and one per error point."""
    dtypes, inputs = ([key for (key,) in _grouped(entries, name)] for name in ("dtype", "input"))
    panels = _grouped(entries, "dtype", "input")
    figure, axes = _panels(len(dtypes), len(inputs))
    for (dtype, name), panel in panels.items():
        axis = axes[dtypes.index(dtype)][inputs.index(name)]
        dense = sorted({(entry["tokens"], entry["dense_seconds"]) for entry in panel})
        axis.plot(*zip(*dense), marker=".", color="black", label="dense")
        for (point,), line in _grouped(panel, "point").items():
            taken = sorted((entry["tokens"], entry["s2o_seconds"]) for entry in line)
            axis.plot(*zip(*taken), marker=".", label=f"S2O, error {100 * point:g} %")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set(title=f"{name}, {dtype}", xlabel="tokens", ylabel="seconds")
        axis.legend(fontsize="small")
    return figure


def visits(records: dict[str, torch.Tensor]) -> Figure:
    """Which keys are visited, 0 to 1: a row per record `[heads, segments, key granules]`, and a panel per head."""
    figure, axes = _panels(len(records), max(len(record) for record in records.values()))
    for row, (name, record) in zip(axes, records.items()):
        for head, (axis, visited) in enumerate(zip(row, record)):
            axis.imshow(
                visited.float().cpu().numpy(), aspect="auto", interpolation="nearest", cmap="Greys", vmin=0, vmax=1
            )
            axis.set(
                title=f"{name}, head {head}", xlabel="keys, first to last", ylabel="queries", xticks=[], yticks=[]
            )
    return figure


def own_visits(heads: Heads) -> torch.Tensor:
    """With S2O's defaults: share of each segment's rows that visits some keys, `[Hkv, segments, N / GRANULE]`."""
    config = S2OConfig()
    settings = {"tau": config.tau, "segment": config.segment, "granule": config.granule}
    _, stats = s2o_prefill(*heads, scale=heads.query.shape[-1] ** -0.5, record=True, **settings)
    return stats.visits[0].unflatten(2, (-1, GRANULE)).mean(-1)


def rule_visits(rule, heads: Heads) -> torch.Tensor:
    """What a peer visits at the density of S2O's defaults, `[H, query blocks, N / GRANULE]`, nothing of the future."""
    knob = knob_at(rule, heads, sparse(heads)[1]["density"])
    queries, keys, _ = query_heads(heads)
    visited = torch.stack([rule(query, key, knob) for query, key in zip(queries, keys)])  # [H, query blocks, N]
    _, blocks, length = visited.shape
    position = torch.arange(length, device=visited.device)
    visited &= position < position[length // blocks - 1 :: length // blocks, None] + 1
    return visited.unflatten(2, (-1, GRANULE)).any(-1)


def _panels(rows: int, columns: int):
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _grouped(entries: Iterable[dict], *names: str) -> dict[tuple, list[dict]]:
    """The entries by their values of `names`, in the order in which these first come."""
    groups: dict[tuple, list[dict]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry[name] for name in names), []).append(entry)
    return groups
