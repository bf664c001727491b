"""
Traces: requests by the time of their arrival. The native format is Mooncake's (FAST 2025), one JSON object a line:

    {"timestamp": ms, "input_length": tokens, "output_length": tokens,
     "hash_ids": [...], "session": name, "delay": ms}          the last three where there are some

`hash_ids` number the prompt's blocks, equal where two prompts are equal up to the block's end. `delay` is what lies
between the end of the session's request before and this one: it then arrives no earlier.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from .requests import Request

HASH_BLOCKS = (512, 16)  # tokens of a hashed block in the public traces


def read_trace(
    path: str | Path, scale: float = 1.0, take: int | None = None, source: str = "native"
) -> Iterator[Request]:
    """
    The requests of a file, one at a time.

    Args:
        path: the file.
        scale: factor of the request rate; times between arrivals are divided by it.
        take: how many of the first requests.
        source: its format, see `importers.SOURCES`.

    Raises:
        ValueError: a line that is none, out of order, or has no lengths; with file and line.
    """
    from .importers import SOURCES

    path = Path(path)
    if source not in SOURCES:
        raise ValueError(f"{source!r} is none of the formats {', '.join(SOURCES)}")
    if scale <= 0:
        raise ValueError(f"scale is {scale} and must be positive")
    if not path.is_file():
        raise ValueError(f"there is no trace {path}")
    for request in islice(in_order(SOURCES[source](path), path), take):
        yield replace(request, arrival=request.arrival / scale) if scale != 1.0 else request


def in_order(numbered: Iterable[tuple[int, Request]], path: Path) -> Iterator[Request]:
    """Requests, as long as they are in order."""
    before = 0.0
    for line, request in numbered:
        if request.arrival < before:
            raise ValueError(
                f"{path}:{line}: it arrives at {request.arrival:g} s, the one before at {before:g} s; sort the trace"
            )
        if request.input_tokens < 1 or request.output_tokens < 1:
            lengths = f"{request.input_tokens} tokens in and {request.output_tokens} out"
            raise ValueError(f"{path}:{line}: {lengths}; both must be at least 1")
        before = request.arrival
        yield request


def read_native(path: Path) -> Iterator[tuple[int, Request]]:
    """Line and request, of Mooncake's format."""
    hash_block = 0
    for line, entry in json_lines(path):
        ids = tuple(entry.get("hash_ids") or ())
        tokens = whole(entry, "input_length", path, line)
        if ids and not hash_block:
            # The block's size is not in the file: it is the larger one that the first prompt has so few of.
            hash_block = next((size for size in HASH_BLOCKS if len(ids) == -(-tokens // size)), 0)
            hash_block = hash_block or next((size for size in HASH_BLOCKS if len(ids) == tokens // size), 16)
        delay = entry.get("delay")
        yield (
            line,
            Request(
                arrival=number(entry, "timestamp", path, line) / 1e3,
                input_tokens=tokens,
                output_tokens=whole(entry, "output_length", path, line),
                hash_ids=ids[: tokens // hash_block] if ids else (),
                hash_block=hash_block or 16,
                session=None if entry.get("session") is None else str(entry["session"]),
                delay=None if delay is None else float(delay) / 1e3,
            ),
        )


def write_trace(requests: Iterable[Request], path: str | Path) -> int:
    """Writes the native format; returns how many requests that were."""
    count = 0
    with Path(path).open("w", encoding="utf-8") as file:
        for request in requests:
            count += 1
            entry: dict[str, Any] = {
                "timestamp": round(1e3 * request.arrival, 3),
                "input_length": request.input_tokens,
                "output_length": request.output_tokens,
            }
            if request.hash_ids:
                entry["hash_ids"] = list(request.hash_ids)
            if request.session is not None:
                entry["session"] = request.session
            if request.delay is not None:
                entry["delay"] = round(1e3 * request.delay, 3)
            file.write(json.dumps(entry) + "\n")
    return count


# ---------------------------------------------------------------- cells


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


def number(entry: dict[str, Any], name: str, path: Path, line: int) -> float:
    """A field that is a number."""
    try:
        return float(entry[name])
    except KeyError:
        raise ValueError(f"{path}:{line}: the field {name} is missing; there are {', '.join(entry)}") from None
    except (TypeError, ValueError):
        raise ValueError(f"{path}:{line}: {name} is {entry[name]!r} and must be a number") from None


def whole(entry: dict[str, Any], name: str, path: Path, line: int) -> int:
    """A field that is a whole number."""
    value = number(entry, name, path, line)
    if value != int(value):
        raise ValueError(f"{path}:{line}: {name} is {value} and must be a whole number")
    return int(value)
