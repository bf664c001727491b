"""`hf-infeco train`: teach a model something, in stages that can be stopped and gone on with."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .failing import failures_told

train = typer.Typer(help="Teach a model something; a run that was stopped goes on.", no_args_is_help=True)


@train.command()
def sidequest(
    model: Annotated[str, typer.Option(help="Folder or Hub name of the base model.")],
    config: Annotated[
        Path | None, typer.Option(help="JSON file with settings of RecipeConfig; its defaults otherwise.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run; the adapter comes to lie in its adapter/.")] = Path(
        "sidequest"
    ),
) -> None:
    """An adapter that tidies an agent's context: rollouts, labels, training, evaluation. Needs the extra `train`."""
    with failures_told("train"):
        from ..training.sidequest import RecipeConfig, run_recipe

        settings = RecipeConfig.from_dict(json.loads(config.read_text()) if config else {})
        typer.echo(f"saved {run_recipe(model, settings, out)}")
