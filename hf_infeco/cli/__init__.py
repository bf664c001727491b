"""The command `hf-infeco`: one file per command, each of which imports torch and transformers only when it runs."""

import typer

from .env import env
from .explain import explain

app = typer.Typer(
    name="hf-infeco",
    help="Long context for Hugging Face models: what a patch would do, and what a bug report needs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command()(env)
app.command()(explain)

__all__ = ["app"]
