"""`hf-infeco plan`: which layout serves a trace within a promise, and for how much."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .failing import failures_told

if TYPE_CHECKING:
    from ..servesim.plan import Candidate


def plan(
    described: Annotated[Path, typer.Argument(metavar="PLAN", help="The YAML file that says what is looked for.")],
    trace: Annotated[Path, typer.Option(help="Requests by the time of their arrival.")],
    source: Annotated[str, typer.Option(help="The trace's format, see hf-infeco simulate.")] = "native",
    scale: Annotated[float, typer.Option(help="Factor of the request rate.")] = 1.0,
    take: Annotated[int | None, typer.Option(help="As many of the first requests.")] = None,
    out: Annotated[Path | None, typer.Option(help="A picture of cost over TTFT, .svg or .png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Simulate every layout; print TTFT, time per token and dollars, and why each loser lost."""
    with failures_told("sim"):
        from tqdm import tqdm

        from ..servesim import read_trace
        from ..servesim.plan import make_plan, read_plan

        wanted = read_plan(described)
        requests = list(read_trace(trace, scale, take, source))
        with tqdm(desc="layouts", disable=as_json, leave=False) as bar:
            found = make_plan(wanted, requests, lambda name: bar.update())
        if out is not None:
            from ..servesim.plots import pareto

            pareto(found).savefig(out)
    if as_json:
        entries = [{name: value for name, value in vars(each).items() if name != "cluster"} for each in found]
        typer.echo(json.dumps(entries, indent=2))
    else:
        typer.echo(as_text(found))


def as_text(found: "list[Candidate]") -> str:
    """A table, the reasons, and how far the figures may be trusted."""
    width = max(len(each.name) for each in found) + 2
    lines = [
        f"{'layout':<{width}}{'devices':>8}{'TTFT p99':>11}{'token p99':>11}{'tokens/s':>10}{'$/million':>11}  why not"
    ]
    for each in found:
        numbers = " " * 32
        if each.summary:
            ttft, tpot = each.summary["ttft"]["p99"], each.summary.get("tpot", {"p99": 0.0})["p99"]
            numbers = f"{ttft:>9.2f} s{1e3 * tpot:>8.1f} ms{each.summary['output_tokens_per_s']:>10,.0f}"
        dollars = "" if each.dollars_per_million is None else f"{each.dollars_per_million:.2f}"
        why = "; ".join(each.reasons) or "nothing: take it"
        lines.append(f"{each.name:<{width}}{each.devices:>8}{numbers}{dollars:>11}  {why}")
    notes = dict.fromkeys(
        note for each in found if each.summary for note in each.summary["notes"] if not note.startswith("saturated")
    )
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])
