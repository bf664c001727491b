"""The ReMix benchmark: its parts, and how much of each is measured."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hf_infeco.training.testbed.puzzle.evaluate import load_model

from ..measuring import bundled_model
from ..suite import Suite
from .cost import WIDE, measure_answers, measure_forwards
from .curves import HARD, KINDS, measure_ablations, measure_curves
from .plots import curves
from .report import QUOTES, TABLES

STRATEGIES = {name: {"strategy": name} for name in ("one", "confidence", "remix")}


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    puzzles: int = 500  # of each kind
    repeats: int = 24  # of a timing
    batches: tuple[int, ...] = (1, 16)
    wide: dict[str, Any] = field(default_factory=lambda: WIDE)
    answers: int = 32  # puzzles that are timed one by one


QUICK = Extent(puzzles=4, repeats=1, batches=(1,), wide={**WIDE, "num_hidden_layers": 1, "vocab_size": 512}, answers=1)


SUITE = Suite(
    name="remix",
    title="ReMix",
    parts={
        "curves": lambda run, extent: measure_curves(run.loaded, extent.puzzles, run.progress("curves"), KINDS),
        "hard": lambda run, extent: measure_curves(run.loaded, extent.puzzles, run.progress("hard"), HARD),
        "ablations": lambda run, extent: measure_ablations(run.loaded, extent.puzzles, run.progress("ablations")),
        "forwards": lambda run, extent: measure_forwards(run.loaded, extent.batches, extent.repeats, extent.wide),
        "answers": lambda run, extent: measure_answers(run.loaded, extent.answers, STRATEGIES),
    },
    full=Extent(),
    quick=QUICK,
    tables=TABLES,
    quotes=QUOTES,
    pictures={"curves": ("curves", curves), "hard": ("hard", curves)},
    find_model=partial(bundled_model, "puzzle"),
    load=lambda run: load_model(run.model, run.device),
    uses_gpu=True,
)
