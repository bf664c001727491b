"""What a simulation tells: a row for each request, a summary, and how far it may be trusted."""

import csv
from array import array
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .engine import Engine
from .requests import Job, Request
from .step import StepTime

COLUMNS = (
    "request",
    "instance",
    "input_tokens",
    "output_tokens",
    "reused_tokens",
    "preemptions",
    "arrival_s",
    "queued_s",
    "scheduled_s",
    "first_token_s",
    "last_token_s",
)
KEPT = ("arrival", "queued", "first", "last")
QUANTILES = {"p50": 50, "p90": 90, "p99": 99}


class Results:
    """
    Times of all requests, in columns by the order in which they ended.

    `rows` goes to a CSV file while the simulation runs; memory holds four times and two counts of a request.
    """

    def __init__(self, rows: str | Path | None = None):
        self.times = {name: array("d") for name in KEPT}
        self.tokens = {name: array("i") for name in ("number", "output")}
        self.count = self.arrivals = self.preemptions = self.input_tokens = 0
        self.seconds = 0.0
        self.engines: list[dict[str, Any]] = []
        self.formulas: list[StepTime] = []
        self.switches: list[tuple[float, int, str]] = []  # time, width, reason
        self.file = open(rows, "w", newline="", encoding="utf-8") if rows else None  # noqa: SIM115 - closed in __exit__
        self.writer = csv.writer(self.file) if self.file else None
        if self.writer:
            self.writer.writerow(COLUMNS)

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *error: object) -> None:
        if self.file:
            self.file.close()

    # ---------------------------------------------------------------- while it runs

    def arrived(self, request: Request) -> None:
        self.arrivals += 1
        self.input_tokens += request.input_tokens

    def ended(self, job: Job, prefill: Job | None, engine: int) -> None:
        """`prefill` is the job of the prefill instance, for a request that went through two."""
        start, request = prefill or job, job.request
        for name, value in zip(KEPT, (start.arrival, start.queued, job.first, job.last)):
            self.times[name].append(value)
        for name, count in zip(self.tokens, (request.number, request.output_tokens)):
            self.tokens[name].append(count)
        self.count += 1
        self.preemptions += job.preemptions
        if self.writer:
            row = [request.number, engine, request.input_tokens, request.output_tokens, start.reused, job.preemptions]
            times = (start.arrival, start.queued, start.scheduled, job.first, job.last)
            self.writer.writerow([*row, *(f"{time:.6f}" for time in times)])

    def add_engine(self, engine: Engine, now: float) -> None:
        idle = now - sum(engine.seconds[state] for state in ("decode", "prefill"))
        seconds = engine.seconds | {"idle": idle}
        power, devices = engine.instance.power, engine.instance.devices
        joules = power and sum(getattr(power, state) * devices * seconds[state] for state in seconds)
        self.switches += getattr(engine, "switches", [])
        self.engines.append({"role": engine.instance.role, "devices": devices, "seconds": seconds, "joules": joules})

    def finish(self, now: float) -> None:
        self.seconds = now
        if self.count != self.arrivals:
            raise RuntimeError(f"{self.arrivals} requests came in and {self.count} are through")

    # ---------------------------------------------------------------- what it tells

    def column(self, name: str) -> np.ndarray:
        """`arrival`, `queued`, `first`, `last` (seconds), `number`, `output`, in the order of the trace."""
        return np.asarray({**self.times, **self.tokens}[name])[self._order]

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(np.asarray(self.tokens["number"]), kind="stable")

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """Seconds by request: TTFT from arrival and from the queue, time per output token, latency."""
        arrival, queued, first, last = (self.column(name) for name in KEPT)
        output = self.column("output")
        several = output > 1
        return {
            "ttft": first - arrival,
            "ttft_from_queue": first - queued,
            "tpot": (last - first)[several] / (output[several] - 1),
            "latency": last - arrival,
        }

    def summary(self) -> dict[str, Any]:
        """Everything that is worth a line, as plain numbers."""
        output = sum(self.tokens["output"])
        metrics = {name: spread(values) for name, values in self.metrics.items() if len(values)}
        joules = [engine["joules"] for engine in self.engines]
        return {
            "requests": self.count,
            "seconds": self.seconds,
            "input_tokens": self.input_tokens,
            "output_tokens": output,
            "output_tokens_per_s": output / self.seconds if self.seconds else 0.0,
            "requests_per_s": self.count / self.seconds if self.seconds else 0.0,
            "preemptions": self.preemptions,
            **metrics,
            "joules": None if None in joules else sum(joules),
            "switches": len(self.switches),
            "saturated": self.is_saturated,
            "sources": self.sources,
            "bands": self.bands,
            "notes": self.notes,
        }

    @cached_property
    def is_saturated(self) -> bool:
        """Whether requests wait longer and longer as long as new ones come: the trace is more than is served."""
        arrival, _, first, last = (np.asarray(self.times[name]) for name in KEPT)
        parts = [(first[part] - arrival[part]).mean() for part in np.array_split(self._order, 5) if len(part)]
        lasting = np.median(last - first) if len(first) else 0.0
        grows = len(parts) == 5 and all(a < b for a, b in pairwise(parts))
        return bool(grows and parts[-1] > 2 * parts[0] and parts[-1] > 0.1 * lasting)

    @property
    def sources(self) -> list[str]:
        return list(dict.fromkeys(formula.tables.source for formula in self.formulas))

    @property
    def bands(self) -> list[dict[str, Any]]:
        return [formula.tables.band for formula in self.formulas if formula.tables.band]

    @property
    def notes(self) -> list[str]:
        """What a reader must know before trusting the numbers."""
        notes = []
        for formula in self.formulas:
            source = formula.tables.source
            if formula.outside:
                share = 100 * formula.outside / max(formula.steps, 1)
                notes.append(f"{share:.1f} % of the steps left what was measured ({source}): extrapolated there")
            if formula.tables.band is None:
                notes.append(f"not calibrated ({source}): no error band")
        if self.is_saturated:
            notes.append("saturated: the queue grows all through the trace, so its length sets the times")
        return list(dict.fromkeys(notes))


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean and quantiles."""
    quantiles = {name: float(np.percentile(values, at)) for name, at in QUANTILES.items()}
    return {"mean": float(values.mean()), **quantiles}
