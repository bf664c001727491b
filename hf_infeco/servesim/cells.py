"""Rows of CSV and JSON lines files, and their cells; what cannot be read is named by file and line."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and object."""
    with path.open(encoding="utf-8") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                entry = json.loads(text)
            except ValueError as error:
                raise ValueError(f"{path}:{line}: it is no JSON ({error})") from None
            if not isinstance(entry, dict):
                raise ValueError(f"{path}:{line}: it is no object with fields")
            yield line, entry


def csv_rows(path: Path, *needed: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and row of a CSV file that has all columns in `needed`."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := set(needed) - set(reader.fieldnames or ()):
            raise ValueError(f"{path}:1: the column {', '.join(sorted(missing))} is missing")
        for row in reader:
            yield reader.line_num, row


def number(entry: dict[str, Any], name: str, path: Path, line: int) -> float:
    """A field that is a finite number."""
    try:
        value = float(entry[name])
    except KeyError:
        raise ValueError(f"{path}:{line}: the field {name} is missing; there are {', '.join(entry)}") from None
    except (TypeError, ValueError):
        raise ValueError(f"{path}:{line}: {name} is {entry[name]!r} and must be a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{path}:{line}: {name} is {entry[name]!r} and must be a finite number")
    return value


def whole(entry: dict[str, Any], name: str, path: Path, line: int) -> int:
    """A field that is a whole number."""
    value = number(entry, name, path, line)
    if value != int(value):
        raise ValueError(f"{path}:{line}: {name} is {value} and must be a whole number")
    return int(value)
