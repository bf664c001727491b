"""`hf-infeco bench`: measure a system on this machine, one command per system."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

bench = typer.Typer(help="Measure a system on this machine and write the numbers down.", no_args_is_help=True)

Parts = Annotated[str, typer.Option(help="Comma-separated, '' for none; the file keeps what is not measured again.")]
Quick = Annotated[bool, typer.Option("--quick", help="Short inputs: shows that it runs, and no more.")]
Plot = Annotated[bool, typer.Option("--plot", help="Draw the results too, beside the file; needs hf_infeco[bench].")]
Model = Annotated[Path | None, typer.Option(help="The recall model; the bundled one by default.")]
Out = Annotated[Path | None, typer.Option(help="The JSON file that is written.")]


@bench.command()
def s2o(
    parts: Parts = "speed,short,error,rules,recall,perplexity",
    quick: Quick = False,
    plot: Plot = False,
    model: Model = None,
    out: Out = None,
) -> None:
    """S2O against dense attention and its peers' selection rules: time, error, recall and perplexity."""
    _measure("s2o", parts, quick, out, model=model, plot=plot)


@bench.command()
def innerq(
    parts: Parts = "bytes,step,cached_step,decode,recall,perplexity,errors",
    quick: Quick = False,
    plot: Plot = False,
    model: Model = None,
    out: Out = None,
) -> None:
    """InnerQ against the dense cache, transformers' QuantizedCache and KIVI: bytes, time, recall and perplexity."""
    _measure("innerq", parts, quick, out, model=model, plot=plot)


@bench.command()
def static(
    parts: Parts = "step,wide,nodes,catalogues,baselines,search,build,validity", quick: Quick = False, out: Out = None
) -> None:
    """STATIC against transformers' own constraint and unconstrained search: time, memory and validity."""
    _measure("static", parts, quick, out)


@bench.command()
def real(
    parts: Parts = "text,taus,layers,padding,answers,lookup,cache_text,cache_lookup,steps,speed",
    quick: Quick = False,
    model: Annotated[
        str | None, typer.Option(help="smollm2 (the default), gemma3, a folder, or a model of the hub.")
    ] = None,
    out: Out = None,
) -> None:
    """A real trained model, dense and patched: perplexity, retrieval, answers, and other caches at equal bytes."""
    _measure("real", parts, quick, out, model=model)


@bench.command()
def remix(
    parts: Parts = "curves,hard,ablations,forwards,answers",
    quick: Quick = False,
    plot: Plot = False,
    model: Annotated[Path | None, typer.Option(help="The puzzle model; the bundled one by default.")] = None,
    out: Out = None,
) -> None:
    """ReMix against one token per step, several, and the confidence threshold: accuracy over forwards, and time."""
    _measure("remix", parts, quick, out, model=model, plot=plot)


def _measure(system: str, parts: str, quick: bool, out: Path | None, **settings: Any) -> None:
    benchmark = import_module(f"hf_infeco.benchmarks.{system}.run")
    chosen = [part.strip() for part in parts.split(",") if part.strip()]
    try:
        written = benchmark.run(chosen, benchmark.QUICK if quick else benchmark.FULL, out=out, **settings)
    except ModuleNotFoundError as error:
        extra = "real" if error.name == "gguf" else "bench"
        raise typer.BadParameter(f"{error.name} is missing: pip install 'hf_infeco[{extra}]'") from error
    except (ConnectionError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    for path in written:
        typer.echo(f"wrote {path}")
