"""The serving simulator's benchmark: its parts, and how much of each is measured."""

from dataclasses import dataclass

from ..suite import Suite
from .paper import measure_paper
from .plots import ttft
from .public import RUNS, PublicRun
from .report import QUOTES, TABLES
from .runs import measure_runs, measure_single
from .speed import measure_speed
from .third_party import measure_third_party


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    runs: tuple[PublicRun, ...] = RUNS
    first: int = 80  # requests that are fitted
    rounds: int = 6  # of the fit
    tables: tuple[str, ...] = ("AIConfigurator", "roofline")  # of third parties; the first needs the extra `aic`
    counts: tuple[int, ...] = (10_000, 20_000, 100_000)  # requests of a timing


SUITE = Suite(
    name="servesim",
    title="Serving simulator",
    parts={
        "runs": lambda run, extent: measure_runs(extent.runs, extent.first, extent.rounds, run.progress("runs")),
        "single": lambda run, extent: measure_single(extent.runs),
        "paper": lambda run, extent: measure_paper(),
        "third_party": lambda run, extent: measure_third_party(
            extent.runs, extent.tables, extent.first, extent.rounds
        ),
        "speed": lambda run, extent: measure_speed(extent.counts),
    },
    full=Extent(),
    quick=Extent(runs=RUNS[1:2], rounds=0, tables=("roofline",), counts=(50,)),
    tables=TABLES,
    quotes=QUOTES,
    pictures={"ttft": ("single", ttft)},
)
