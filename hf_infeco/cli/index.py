"""`hf-infeco index`: build, look at and check an index of decodable sequences."""

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

index = typer.Typer(help="Build, look at and check an index of decodable sequences.", no_args_is_help=True)

CHUNK_ROWS = 100_000
Folder = Annotated[str, typer.Argument(metavar="INDEX", help="A folder or a name on the Hub.")]


@index.command()
def build(
    source: Annotated[Path, typer.Argument(help="A .csv, .jsonl, .parquet or .npy file.")],
    folder: Annotated[Path, typer.Argument(help="Where the index is written.")],
    vocab_size: Annotated[int, typer.Option(help="The model's, see vocab_size in its config.json.")],
    tokens: Annotated[
        str, typer.Option(help="Field with a sequence's tokens (in CSV apart by spaces), or fields apart by commas.")
    ] = "tokens",
    item_id: Annotated[str | None, typer.Option("--id", help="Field with the item's id.")] = None,
) -> None:
    """Build an index from a table with one item a row, or from a 2-D array of tokens."""
    from hf_infeco.static import StaticIndex

    ids: list[Any] | None = None if item_id is None else []
    try:
        if source.suffix == ".npy":
            if ids is not None:
                _fail(f"{source} is an array: it has no field {item_id!r} with ids")
            sequences = _array(source)
        else:
            sequences = _chunks(_rows(source), tokens.split(","), item_id, ids)
        built = StaticIndex.build(sequences, vocab_size=vocab_size, item_ids=ids)
    except (OSError, TypeError, ValueError) as error:
        _fail(f"{source}: {error}")
    built.save_pretrained(folder)
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

    if Path(folder).is_absolute() and not Path(folder).exists():
        _fail(f"{folder!r} does not exist")  # the Hub would be asked for it
    try:
        return StaticIndex.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        _fail(f"{folder!r} is no index: {error}")


def _array(source: Path) -> Any:
    import numpy as np

    return np.load(source, mmap_mode="r", allow_pickle=False)


def _rows(source: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table as dicts."""
    if source.suffix == ".csv":
        with open(source, newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)
    elif source.suffix in (".jsonl", ".ndjson"):
        with open(source, encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())
    elif source.suffix == ".parquet":
        try:
            from pyarrow.parquet import ParquetFile
        except ModuleNotFoundError:
            _fail(f"{source}: reading parquet needs pyarrow: pip install pyarrow")
        for batch in ParquetFile(source).iter_batches(CHUNK_ROWS):
            yield from batch.to_pylist()
    else:
        _fail(f"{source}: {source.suffix or 'no suffix'} is none of .csv, .jsonl, .parquet and .npy")


def _chunks(
    rows: Iterable[dict[str, Any]], fields: list[str], item_id: str | None, ids: list[Any] | None
) -> Iterator[list[list[int]]]:
    """Sequences in chunks, so that a long file shows its progress; their ids are added to `ids` on the way."""
    rows = iter(rows)
    while chunk := list(islice(rows, CHUNK_ROWS)):
        missing = {*fields, *([item_id] if item_id else [])} - chunk[0].keys()
        if missing:
            raise ValueError(f"there is no field {sorted(missing)}, only {sorted(chunk[0])}; see --tokens and --id")
        if ids is not None and item_id is not None:
            ids += [row[item_id] for row in chunk]
        yield [[int(token) for field in fields for token in _tokens(row[field])] for row in chunk]


def _tokens(cell: Any) -> list[Any]:
    """What a field holds: a list, one number, or numbers in a text, apart by spaces."""
    if isinstance(cell, str):
        return cell.split()
    return cell if isinstance(cell, list) else [cell]


def _fail(message: str) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(1)
