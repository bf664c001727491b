"""The command `hf-infeco`: one file per command, each of which imports torch and transformers only when it runs."""

import typer

from .bench import bench
from .calibrate import calibrate
from .env import env
from .explain import explain
from .index import index
from .plan import plan
from .profile import profile
from .serve import serve
from .simulate import simulate
from .train import train

app = typer.Typer(
    name="hf-infeco",
    help="hf_infeco: what a patch would do, serving, benchmarks, indexes, recipes and the serving simulator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command()(env)
app.command()(explain)
app.command()(simulate)
app.command()(profile)
app.command()(calibrate)
app.command()(plan)
app.command()(serve)
app.add_typer(bench, name="bench")
app.add_typer(index, name="index")
app.add_typer(train, name="train")

__all__ = ["app"]
