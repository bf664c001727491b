"""Logs of real runs, as what calibration and comparisons need: the requests, and when their tokens came."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .cells import csv_rows, number
from .importers import read_rows, read_vllm_log
from .requests import Request
from .traces import in_order


@dataclass(frozen=True)
class Log:
    """
    What a real engine did.

    Args:
        requests: in the order of arrival.
        ttft: seconds from arrival to the first token.
        tpot: seconds per token after that, nan where there is one token.
        latency: seconds from arrival to the last token.
        queued: seconds from arrival until the scheduler saw the request, where the log tells.
    """

    requests: Sequence[Request]
    ttft: np.ndarray
    tpot: np.ndarray
    latency: np.ndarray
    queued: np.ndarray | None = None


def read_log(path: str | Path) -> Log:
    """
    A log: the CSV that `hf-infeco simulate` writes, or the JSON of `vllm bench serve --save-detailed`.

    Raises:
        ValueError: it is neither, or lacks a field; with file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no log {path}")
    return _from_vllm(path) if path.suffix == ".json" else _from_rows(path)


def _from_rows(path: Path) -> Log:
    names = ("arrival_s", "first_token_s", "last_token_s")
    rows = dict(csv_rows(path, *names))
    numbered = list(read_rows(path))
    if not numbered:
        raise ValueError(f"{path}: no request came through")

    def column(name: str) -> np.ndarray:
        return np.array([number(rows[line], name, path, line) for line, _ in numbered])

    requests = list(in_order(numbered, path))
    arrival, first, last = (column(name) for name in names)
    queued = column("queued_s") - arrival if "queued_s" in rows[numbered[0][0]] else None
    return _log(requests, first - arrival, last - first, queued)


def _from_vllm(path: Path) -> Log:
    log = read_vllm_log(path)
    order = sorted((i for i, n in enumerate(log["output_lens"]) if n), key=lambda i: log["start_times"][i])
    if not order:
        raise ValueError(f"{path}: no request came through")
    start = log["start_times"][order[0]]
    requests = [
        Request(log["start_times"][i] - start, int(log["input_lens"][i]), int(log["output_lens"][i])) for i in order
    ]
    ttft = np.array([float(log["ttfts"][i]) for i in order])
    decoding = np.array([float(np.sum(log["itls"][i])) for i in order])
    return _log(list(in_order(((1, request) for request in requests), path)), ttft, decoding, None)


def _log(requests: list[Request], ttft: np.ndarray, decoding: np.ndarray, queued: np.ndarray | None) -> Log:
    steps = np.array([request.output_tokens - 1 for request in requests], float)
    tpot = np.divide(decoding, steps, out=np.full_like(decoding, np.nan), where=steps > 0)
    return Log(requests, ttft, tpot, ttft + decoding, queued)
