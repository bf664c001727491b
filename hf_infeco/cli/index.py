"""`hf-infeco index`: build, look at and check an index of decodable sequences."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .failing import fail
from .tables import read_rows, read_tokens, table_kind

index = typer.Typer(help="Build, look at and check an index of decodable sequences.", no_args_is_help=True)

Folder = Annotated[str, typer.Argument(metavar="INDEX", help="A folder or a name on the Hub.")]


@index.command()
def build(
    source: Annotated[Path, typer.Argument(help="A .csv, .tsv, .jsonl (or .gz of these), .parquet or .npy file.")],
    folder: Annotated[Path, typer.Argument(help="Where the index is written.")],
    vocab_size: Annotated[int, typer.Option(help="The model's, see vocab_size in its config.json.")],
    tokens: Annotated[
        str,
        typer.Option(
            help="Field with a sequence's tokens (a list, or apart by spaces or commas), or fields apart by commas."
        ),
    ] = "tokens",
    item_id: Annotated[str | None, typer.Option("--id", help="Field with the item's id.")] = None,
) -> None:
    """Build an index from a table with one item a row, or from a 2-D array of tokens."""
    from hf_infeco.static import StaticIndex

    ids: list[Any] = []
    try:
        if table_kind(source) == ".npy":
            if item_id is not None:
                fail(f"{source} is an array: it has no field {item_id!r} with ids")
            sequences = _array(source)
        else:
            sequences = read_tokens(read_rows(source), tokens.split(","), item_id, ids)
        built = StaticIndex.build(sequences, vocab_size=vocab_size, item_ids=None if item_id is None else ids)
    except (OSError, TypeError, ValueError, EOFError) as error:
        fail(f"{source}: {error}")
    try:
        built.save_pretrained(folder)
    except OSError as error:
        fail(f"{folder}: {error}")
    typer.echo(f"wrote {built} to {folder}")


@index.command()
def inspect(folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print what an index holds and how large it is."""
    about = _load(folder).describe()
    if as_json:
        typer.echo(json.dumps(about, indent=2))
        return
    levels = about.pop("levels")
    width = max(map(len, about))
    for name, value in about.items():
        typer.echo(f"{name:<{width}}  {value:,}" if type(value) is int else f"{name:<{width}}  {value}")
    typer.echo(f"\n{'level':>5} {'tokens':>10} {'nodes':>12} {'most children':>14}")
    for number, level in enumerate(levels):
        typer.echo(f"{number:>5} {level['tokens']:>10,} {level['nodes']:>12,} {level['most_children']:>14,}")


@index.command()
def check(folder: Folder) -> None:
    """Read all of an index and say whether it is whole; exit code 1 if it is not."""
    from hf_infeco.static.checking import find_faults

    loaded = _load(folder)
    faults = find_faults(loaded, loaded.fingerprint)
    for fault in faults:
        typer.echo(f"Error: {fault}", err=True)
    if faults:
        raise typer.Exit(1)
    typer.echo(f"{loaded} is whole, fingerprint {loaded.fingerprint}")


def _load(folder: str) -> Any:
    from hf_infeco.static import StaticIndex

    try:
        return StaticIndex.from_pretrained(folder)
    except (OSError, ValueError) as error:
        fail(f"{folder!r} is no index: {error}")


def _array(source: Path) -> Any:
    import numpy as np

    return np.load(source, mmap_mode="r", allow_pickle=False)
