"""`hf-infeco bench`: measure a system on this machine, one command per system."""

from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(help="Measure a system on this machine and write the numbers down.", no_args_is_help=True)


@bench.command()
def s2o(
    parts: Annotated[
        str, typer.Option(help="Comma-separated, '' for none; the file keeps what is not measured again.")
    ] = "speed,error,rules,recall,perplexity",
    quick: Annotated[bool, typer.Option("--quick", help="Short inputs: shows that it runs, and no more.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the results too; needs hf_infeco[bench].")] = False,
    model: Annotated[Path | None, typer.Option(help="The recall model; the bundled one by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file; pictures go beside it.")] = None,
) -> None:
    """S2O against dense attention and its peers' selection rules: time, error, recall and perplexity."""
    from ..benchmarks.s2o.run import FULL, QUICK, run

    chosen = [part.strip() for part in parts.split(",") if part.strip()]
    try:
        written = run(chosen, QUICK if quick else FULL, model, out, plot)
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"--plot needs {error.name}: pip install 'hf_infeco[bench]'") from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    for path in written:
        typer.echo(f"wrote {path}")


@bench.command()
def innerq(
    parts: Annotated[
        str, typer.Option(help="Comma-separated, '' for none; the file keeps what is not measured again.")
    ] = "bytes,step,cached_step,decode,recall,perplexity,errors",
    quick: Annotated[bool, typer.Option("--quick", help="Short inputs: shows that it runs, and no more.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the results too; needs hf_infeco[bench].")] = False,
    model: Annotated[Path | None, typer.Option(help="The recall model; the bundled one by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file; pictures go beside it.")] = None,
) -> None:
    """InnerQ against the dense cache, transformers' QuantizedCache and KIVI: bytes, time, recall and perplexity."""
    from ..benchmarks.innerq.run import FULL, QUICK, run

    chosen = [part.strip() for part in parts.split(",") if part.strip()]
    try:
        written = run(chosen, QUICK if quick else FULL, model, out, plot)
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"--plot needs {error.name}: pip install 'hf_infeco[bench]'") from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    for path in written:
        typer.echo(f"wrote {path}")
