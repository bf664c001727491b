"""`hf-infeco calibrate`: fit a profile to a log that one has already."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .failing import failures_told
from .simulate import METRICS


def calibrate(
    log: Annotated[Path, typer.Option(help="CSV as simulate writes it, or JSON of vllm bench serve --save-detailed.")],
    cluster: Annotated[Path, typer.Option(help="The YAML file of the cluster that wrote the log.")],
    first: Annotated[int, typer.Option(help="Requests that are fitted; the others tell the error.")] = 80,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The profile; the cluster's by default.")] = None,
) -> None:
    """Fit prefill, decode, host gap, link and partly filled steps; print and store the error on held-out requests."""
    with failures_told("sim"):
        from tqdm import tqdm

        from ..servesim.calibrate import calibrate as fit
        from ..servesim.files import read_cluster
        from ..servesim.logs import read_log
        from ..servesim.profiles import store_calibration

        described = read_cluster(cluster)
        with tqdm(desc="simulations", leave=False) as bar:
            correction, held_out = fit(described, read_log(log), first, progress=lambda loss: bar.update())
        instance = described.instances[0]
        store_calibration(out or Path(instance.profile), instance.tp, asdict(correction), held_out)
    typer.echo("fitted: " + ", ".join(f"{name} {value:.4g}" for name, value in asdict(correction).items()))
    header = f"error on {held_out['requests']} others"
    typer.echo(f"{header:<24}" + "".join(f"{name:>8}" for name in ("mean", "p50", "p90", "p99", "MAPE")))
    for name in ("ttft", "tpot", "latency"):
        typer.echo(f"{METRICS[name]:<24}" + "".join(f"{value:>+7.1f}%" for value in held_out[name].values()))
