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

from .importers import SOURCES
from .requests import Request


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
