"""How a command of the simulator ends where a user's input is wrong: with one line, and no traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer


@contextmanager
def failures_told() -> Iterator[None]:
    """Around what reads files and may need an extra that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = "aic" if str(error.name).startswith("aiconfigurator") else "sim"
        _fail(f"{error.name} is missing: pip install 'hf_infeco[{extra}]'")
    except (OSError, ValueError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(1)
