"""`hf-infeco bench`: measure a system on this machine, one command per suite of `hf_infeco.benchmarks`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ..benchmarks import SUITES, load
from .failing import failures_told

bench = typer.Typer(help="Measure a system on this machine and write the numbers down.", no_args_is_help=True)

Parts = Annotated[
    str | None,
    typer.Option(help="Comma-separated, all by default, '' for none; the file keeps what is not measured again."),
]
Quick = Annotated[bool, typer.Option("--quick", help="Short inputs: shows that it runs, and no more.")]
Plot = Annotated[bool, typer.Option("--plot", help="Draw the results too; needs the extra `bench`.")]
Out = Annotated[Path | None, typer.Option(help="The JSON file that is written.")]
Model = Annotated[str | None, typer.Option(help="A folder with another model; real also takes gemma3 and the Hub's.")]


def _command(name: str) -> Callable[..., None]:
    def measure(
        parts: Parts = None, quick: Quick = False, plot: Plot = False, out: Out = None, model: Model = None
    ) -> None:
        from ..benchmarks.suite import run

        chosen = None if parts is None else [part.strip() for part in parts.split(",") if part.strip()]
        with failures_told("bench"):
            written = run(load(name), chosen, quick, out, plot, model)
        for path in written:
            typer.echo(f"wrote {path}")

    return measure


for name, about in SUITES.items():
    bench.command(name, help=about)(_command(name))
