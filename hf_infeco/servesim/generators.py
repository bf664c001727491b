"""Traces out of a few numbers: steady arrivals, bursts, conversations with tools, and ServeGen's clients."""

import json
from collections.abc import Callable, Iterator
from heapq import merge
from itertools import count
from math import gamma
from pathlib import Path

import numpy as np

from .cells import csv_rows
from .requests import Request

BLOCK = 16


def poisson(
    rate: float, requests: int, input_tokens: float, output_tokens: float, burstiness: float = 1.0, seed: int = 0
) -> Iterator[Request]:
    """
    Independent requests with lengths of log-normal spread.

    Args:
        rate: requests per second.
        requests: how many.
        input_tokens, output_tokens: means.
        burstiness: coefficient of variation of the gaps: 1 is a Poisson process, more comes in bursts.
        seed: of the dice.
    """
    dice = np.random.default_rng(seed)
    shape = burstiness**-2  # gamma gaps: their coefficient of variation is shape ** -0.5
    now = 0.0
    for _ in range(requests):
        now += float(dice.gamma(shape, 1.0 / (rate * shape)))
        yield Request(now, _length(dice, input_tokens), _length(dice, output_tokens))


def sessions(
    rate: float,
    sessions: int,
    turns: int,
    first_input: float,
    further_input: float,
    output_tokens: float,
    tool_seconds: float,
    seed: int = 0,
) -> Iterator[Request]:
    """
    Agents: each turn's prompt is the whole conversation so far and what a tool has added.

    Args:
        rate: sessions that begin per second.
        sessions, turns: how many, and the mean number of turns (geometric).
        first_input, further_input, output_tokens: mean tokens of the first prompt, of what a tool adds, of an answer.
        tool_seconds: mean seconds (exponential) between an answer and the session's next request.
        seed: of the dice.
    """
    dice = np.random.default_rng(seed)
    blocks = count(1)
    start = 0.0
    for number in range(sessions):
        start += float(dice.exponential(1.0 / rate))
        context = _length(dice, first_input)
        ids: list[int] = []
        for turn in range(int(dice.geometric(1.0 / turns))):
            ids += [next(blocks) for _ in range(context // BLOCK - len(ids))]
            output = _length(dice, output_tokens)
            delay = float(dice.exponential(tool_seconds)) if turn else 0.0
            yield Request(start, context, output, tuple(ids), BLOCK, session=str(number), delay=delay)
            context += output + _length(dice, further_input)


def servegen(rates: str | Path, lengths: str | Path, seconds: float, seed: int = 0) -> Iterator[Request]:
    """
    ServeGen's clients (arXiv 2505.09999): each has its rate and its gaps' spread by window, and its own lengths.

    Args:
        rates: CSV with client, window_start_s, rate_req_s, family (Gamma or Weibull), and its two parameters.
        lengths: JSON with shares of input and output tokens, by client and start of a window.
        seconds: how much of the trace.
        seed: of the dice.

    Raises:
        ValueError: a column that is missing, or a family that is none of the two.
    """
    by_client = json.loads(Path(lengths).read_text("utf-8"))
    windows: dict[str, list[dict[str, str]]] = {}
    columns = ("client", "window_start_s", "rate_req_s", "family", "param1")
    for _, row in csv_rows(Path(rates), *columns):
        windows.setdefault(row["client"], []).append(row)
    clients = [
        _client(rows, by_client[name], np.random.default_rng([seed, place]), seconds)
        for place, (name, rows) in enumerate(sorted(windows.items()))
        if name in by_client
    ]
    return merge(*clients, key=lambda request: request.arrival)


def _client(
    windows: list[dict[str, str]],
    shares: dict[str, dict[str, dict[str, float]]],
    dice: np.random.Generator,
    end: float,
) -> Iterator[Request]:
    """One client's requests; a window with no rate is silent."""
    lengths = [(float(start), each) for start, each in sorted(shares.items(), key=lambda pair: float(pair[0]))]
    starts = [float(row["window_start_s"]) for row in windows]
    for row, start, after in zip(windows, starts, [*starts[1:], starts[-1] + 600.0]):
        if start >= end:
            return
        if not row["family"]:
            continue
        gap = _gaps(row, dice)
        its = [each for begins, each in lengths if begins <= start][-1]
        now = start + gap()
        while now < min(after, end):
            yield Request(now, _drawn(its["input_tokens"], dice), _drawn(its["output_tokens"], dice))
            now += gap()


def _gaps(row: dict[str, str], dice: np.random.Generator) -> Callable[[], float]:
    """Seconds between arrivals, drawn from the window's family and brought to the window's rate."""
    shape, mean = float(row["param1"]), 1.0 / float(row["rate_req_s"])
    if row["family"] == "Gamma":
        return lambda: float(dice.gamma(shape, mean / shape))
    if row["family"] == "Weibull":
        return lambda: mean / gamma(1.0 + 1.0 / shape) * float(dice.weibull(shape))
    raise ValueError(f"the family of gaps is {row['family']!r}, and must be Gamma or Weibull")


def _drawn(shares: dict[str, float], dice: np.random.Generator) -> int:
    """A length from a histogram by its bins' lower ends."""
    tokens, weights = list(map(int, shares)), np.fromiter(shares.values(), float)
    return max(1, tokens[int(dice.choice(len(tokens), p=weights / weights.sum()))])


def _length(dice: np.random.Generator, mean: float, spread: float = 0.8) -> int:
    """Log-normal with that mean; `spread` is the standard deviation of the logarithm."""
    return max(1, round(float(dice.lognormal(np.log(mean) - spread**2 / 2, spread))))
