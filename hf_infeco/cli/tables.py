"""Files with one item a row, read row by row; whatever cannot be read is named by its row and field."""

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

CHUNK_ROWS = 100_000
DELIMITERS = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".ndjson")
KNOWN = ".csv, .tsv and .jsonl, each of which may end in .gz, .parquet and .npy"


def read_rows(source: Path) -> Iterator[dict[str, Any]]:
    """
    The rows of a table as dicts.

    Raises:
        ValueError: for a file that is of another kind, was cut off, or does not hold rows with the same fields.
    """
    kind = table_kind(source)
    try:
        if kind == ".parquet":
            yield from _parquet(source)
            return
        with _open(source) as file:
            yield from _delimited(file, DELIMITERS[kind]) if kind in DELIMITERS else _json_lines(file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"it was cut off, or is no gzip file ({error})") from error
    except csv.Error as error:
        raise ValueError(f"it is no table ({error})") from error


def table_kind(source: Path) -> str:
    """The suffix that tells how a file is read, in small letters and without .gz."""
    suffixes = [suffix.lower() for suffix in source.suffixes]
    kind = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else "".join(suffixes[-1:])
    packable = kind in DELIMITERS or kind in LINES
    if not packable and (kind not in (".parquet", ".npy") or suffixes[-1] == ".gz"):
        raise ValueError(f"{''.join(source.suffixes) or 'no suffix'} is none of {KNOWN}")
    return kind


def read_tokens(
    rows: Iterable[dict[str, Any]], fields: Sequence[str], item_id: str | None, ids: list[Any]
) -> Iterator[list[list[int]]]:
    """Sequences in chunks, so that a long file shows its progress; their ids are added to `ids` on the way."""
    numbered = enumerate(rows, 1)
    while chunk := list(islice(numbered, CHUNK_ROWS)):
        for number, row in chunk:
            missing = {*fields, *([item_id] if item_id else [])} - row.keys()
            if missing:
                raise ValueError(
                    f"row {number} has no field {sorted(missing)}, only {sorted(row)}; see --tokens and --id"
                )
            if item_id is not None:
                ids.append(_given(row[item_id], number, item_id))
        yield [[token for field in fields for token in _tokens(row[field], number, field)] for number, row in chunk]


def _tokens(cell: Any, number: int, field: str) -> list[int]:
    """What a field holds: a list, one number, or numbers in a text, apart by spaces or commas or as a JSON list."""
    cell = _given(cell, number, field)
    if isinstance(cell, str):
        text = cell.strip()
        listed = text.startswith("[") and text.endswith("]")
        cell = (text[1:-1] if listed else text).replace(",", " ").split()
    tokens = []
    for token in cell if isinstance(cell, list) else [cell]:
        is_whole = isinstance(token, str) or type(token) is int
        try:
            tokens.append(int(token) if is_whole else int(""))
        except ValueError:
            raise ValueError(f"row {number}, field {field!r}: {token!r} is no token, which is an integer") from None
    return tokens


def _given(cell: Any, number: int, field: str) -> Any:
    if cell is None or cell == "" or cell != cell:  # the last is what NaN is
        raise ValueError(f"row {number}, field {field!r} is empty; drop the row, or fill it in")
    return cell


# ---------------------------------------------------------------- kinds of files


def _open(source: Path) -> IO[str]:
    opened = gzip.open if source.suffix.lower() == ".gz" else open
    return opened(source, "rt", newline="", encoding="utf-8-sig")  # spreadsheets write a mark of the byte order


def _delimited(file: IO[str], delimiter: str) -> Iterator[dict[str, Any]]:
    reader = csv.reader(file, delimiter=delimiter)
    header = next(reader, [])
    _refuse_repeated(header)
    for number, cells in enumerate(filter(None, reader), 1):
        if len(cells) != len(header):
            raise ValueError(
                f"row {number} has {len(cells)} cells, and the header {len(header)}; put lists of tokens in quotes, "
                "or apart by spaces"
            )
        yield dict(zip(header, cells, strict=True))


def _json_lines(file: IO[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(filter(str.strip, file), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"row {number} is no JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f'row {number} is no object with fields, such as {{"tokens": [1, 2]}}, one a line')
        yield row


def _parquet(source: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow.lib import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise ValueError("reading parquet needs pyarrow: pip install pyarrow") from None
    try:
        table = ParquetFile(source)
        _refuse_repeated(table.schema_arrow.names)
        for batch in table.iter_batches(CHUNK_ROWS):
            yield from batch.to_pylist()
    except ArrowException as error:
        raise ValueError(f"it was cut off, or is no parquet file ({error})") from error


def _refuse_repeated(header: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise ValueError(f"several columns are called {repeated[0]!r}; rename all but one")
