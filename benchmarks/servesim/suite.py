"""The serving simulator's benchmark: its parts, and how much of each is measured."""

from dataclasses import dataclass

from ..suite import Suite
from .paper import measure_paper
from .plots import ttft
from .report import QUOTES, TABLES
from .runs import measure_runs, measure_single
from .speed import measure_speed


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    first: int = 80  # requests that are fitted
    rounds: int = 6  # of the fit
    counts: tuple[int, ...] = (10_000, 20_000, 100_000)  # requests of a timing


SUITE = Suite(
    name="servesim",
    title="Serving simulator",
    parts={
        "runs": lambda run, extent: measure_runs(extent.first, extent.rounds, run.progress("runs")),
        "single": lambda run, extent: measure_single(),
        "paper": lambda run, extent: measure_paper(),
        "speed": lambda run, extent: measure_speed(extent.counts),
    },
    full=Extent(),
    quick=Extent(rounds=0, counts=(50,)),
    tables=TABLES,
    quotes=QUOTES,
    pictures={"ttft": ("single", ttft)},
)
