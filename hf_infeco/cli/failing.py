"""How commands end where a user's input is wrong or a package is missing: with one line, and no traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

EXTRAS = {"gguf": "real", "aiconfigurator_core": "aic", "datasets": "train"}  # by package, whatever the command


@contextmanager
def failures_told(extra: str | None) -> Iterator[None]:
    """
    Around what reads files, and may need a package of `EXTRAS` or of the command's own `extra`; with None, one that
    only the user's model asks for.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        needed = EXTRAS.get(str(error.name).partition(".")[0], extra)
        fail(f"{error.name} is missing: pip install 'hf_infeco[{needed}]'" if needed else str(error))
    except (ImportError, OSError, ValueError) as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(1)
