"""Readers of public trace formats and of logs; each yields (line, request)."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .cells import csv_rows, json_lines, number, whole
from .requests import Request

HASH_BLOCKS = (512, 16)  # tokens of a hashed block in the public traces
Numbered = Iterator[tuple[int, Request]]


def read_native(path: Path) -> Numbered:
    """Mooncake's format, see `traces`."""
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


def read_azure(path: Path) -> Numbered:
    """Azure LLM inference traces (Splitwise, ISCA 2024): TIMESTAMP, ContextTokens, GeneratedTokens."""
    start: datetime | None = None
    for line, row in csv_rows(path, "TIMESTAMP", "ContextTokens", "GeneratedTokens"):
        try:
            at = datetime.fromisoformat(row["TIMESTAMP"])
        except (TypeError, ValueError):
            raise ValueError(f"{path}:{line}: TIMESTAMP is {row['TIMESTAMP']!r} and must be a date and time") from None
        if at.tzinfo is None:  # some of its files name the zone, in some rows or in all
            at = at.replace(tzinfo=UTC)
        start = start or at
        arrival = (at - start).total_seconds()
        yield line, _request(arrival, row, "ContextTokens", "GeneratedTokens", path, line)


def read_burstgpt(path: Path) -> Numbered:
    """BurstGPT, with and without sessions. Failed requests, which made no token, are left out."""
    for line, row in csv_rows(path, "Timestamp", "Request tokens", "Response tokens"):
        if whole(row, "Response tokens", path, line) == 0:
            continue
        arrival = number(row, "Timestamp", path, line)
        session = row.get("Session ID") or None
        yield line, _request(arrival, row, "Request tokens", "Response tokens", path, line, session=session)


def read_bailian(path: Path) -> Numbered:
    """Qwen-Bailian: seconds, 16-token blocks, conversations by chat_id and parent_chat_id."""
    roots: dict[Any, Any] = {}
    for line, entry in json_lines(path):
        parent = entry.get("parent_chat_id", -1)
        chat = entry.get("chat_id", line)
        roots[chat] = roots.get(parent, parent) if parent != -1 else chat
        tokens = whole(entry, "input_length", path, line)
        yield (
            line,
            Request(
                arrival=number(entry, "timestamp", path, line),
                input_tokens=tokens,
                output_tokens=whole(entry, "output_length", path, line),
                hash_ids=tuple(entry.get("hash_ids") or ())[: tokens // 16],
                session=str(roots[chat]),
            ),
        )


def read_vllm_bench(path: Path) -> Numbered:
    """What `vllm bench serve --save-result --save-detailed` writes; a request starts when it was sent."""
    log = read_vllm_log(path)
    order = sorted(range(len(log["input_lens"])), key=lambda i: log["start_times"][i])
    for i in order:
        if log["output_lens"][i]:
            arrival = log["start_times"][i] - log["start_times"][order[0]]
            yield 1, Request(arrival, int(log["input_lens"][i]), int(log["output_lens"][i]))


def read_vllm_log(path: Path) -> dict[str, Any]:
    """The lists of such a file. Older versions save no start times: without them there is no trace."""
    try:
        log = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: it is no JSON ({error})") from None
    needed = ("input_lens", "output_lens", "ttfts", "itls", "start_times")
    if missing := [name for name in needed if not log.get(name)]:
        raise ValueError(f"{path}: {', '.join(missing)} are missing; run vllm bench serve with --save-detailed")
    return log


def read_llmservingsim(path: Path) -> Numbered:
    """LLMServingSim's lines: Mooncake's names, or those of its datasets (arrival_time_ns, input_toks, output_toks)."""
    for line, entry in json_lines(path):
        if "timestamp" in entry:
            yield from read_native(path)
            return
        arrival = number(entry, "arrival_time_ns", path, line) / 1e9
        yield line, _request(arrival, entry, "input_toks", "output_toks", path, line)


def read_rows(path: Path) -> Numbered:
    """The CSV that `simulate` writes, whose rows come as requests end, and logs with its columns; by arrival."""
    numbered = [
        (line, _request(number(row, "arrival_s", path, line), row, "input_tokens", "output_tokens", path, line))
        for line, row in csv_rows(path, "arrival_s", "input_tokens", "output_tokens")
    ]
    yield from sorted(numbered, key=lambda pair: pair[1].arrival)


SOURCES: dict[str, Callable[[Path], Numbered]] = {
    "native": read_native,
    "azure": read_azure,
    "burstgpt": read_burstgpt,
    "bailian": read_bailian,
    "vllm-bench": read_vllm_bench,
    "llmservingsim": read_llmservingsim,
    "rows": read_rows,
}


def _request(
    arrival: float, row: dict[str, Any], tokens_in: str, tokens_out: str, path: Path, line: int, **more: Any
) -> Request:
    lengths = whole(row, tokens_in, path, line), whole(row, tokens_out, path, line)
    return Request(arrival, *lengths, **more)
