"""`hf-infeco simulate`: what a cluster would do with a trace."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .failing import failures_told

if TYPE_CHECKING:
    from ..servesim.results import Results

METRICS = {"ttft": "TTFT", "ttft_from_queue": "TTFT from queue", "tpot": "per token", "latency": "latency"}


def simulate(
    cluster: Annotated[Path, typer.Option(help="The YAML file that describes it.")],
    trace: Annotated[Path, typer.Option(help="Requests by the time of their arrival.")],
    out: Annotated[Path | None, typer.Option(help="A folder for requests.csv, summary.json and plots.")] = None,
    source: Annotated[
        str,
        typer.Option(help="The trace's format: native, azure, burstgpt, bailian, vllm-bench, llmservingsim, rows."),
    ] = "native",
    scale: Annotated[float, typer.Option(help="Factor of the request rate.")] = 1.0,
    take: Annotated[int | None, typer.Option(help="As many of the first requests.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn by lot.")] = 0,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the distributions too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Serve a trace in simulated time; print TTFT, time per token and throughput, and how far to trust them."""
    with failures_told("sim"):
        from tqdm import tqdm

        from ..servesim import read_trace
        from ..servesim import simulate as run

        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        with tqdm(desc="requests", disable=as_json, leave=False) as bar:
            results = run(
                cluster,
                read_trace(trace, scale, take, source),
                seed=seed,
                rows=out / "requests.csv" if out else None,
                progress=lambda done: bar.update(),
            )
        summary = results.summary()
        if out is not None:
            (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        if plot:
            _plot(results, out or Path())
    typer.echo(json.dumps(summary, indent=2) if as_json else as_text(summary))


def as_text(summary: dict[str, Any]) -> str:
    """A few lines: what a user asks first, and what limits the answer."""
    lines = [
        f"{summary['requests']:,} requests in {summary['seconds']:.1f} s: {summary['requests_per_s']:.2f} requests/s, "
        f"{summary['output_tokens_per_s']:,.0f} tokens/s out, {summary['preemptions']} preemptions",
        f"{'ms':<16}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}",
    ]
    for name, title in METRICS.items():
        if name in summary:
            lines.append(f"{title:<16}" + "".join(f"{1e3 * value:>10,.1f}" for value in summary[name].values()))
    if summary["joules"] is not None:
        lines.append(f"energy: {summary['joules'] / 3.6e6:.3f} kWh")
    lines += [f"tables: {source}" for source in summary["sources"]]
    for band in summary["bands"]:
        held = ", ".join(f"{METRICS[name]} {band[name]['mean']:+.1f} %" for name in ("ttft", "tpot", "latency"))
        lines.append(f"error on {band['requests']} requests that calibration had not seen: {held}")
    return "\n".join(lines + [f"note: {note}" for note in summary["notes"]])


def _plot(results: "Results", folder: Path) -> None:
    from ..servesim.plots import distributions

    distributions(results).savefig(folder / "distributions.svg")
