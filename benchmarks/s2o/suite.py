"""The S2O benchmark: its parts, and how much of each is measured."""

from dataclasses import dataclass
from functools import partial

from ..measuring import bundled_model
from ..real.fetch import model_folder
from ..real.reader import Reader
from ..suite import Suite
from .fidelity import compare_rules, measure_error
from .inputs import Captor
from .plots import errors, times
from .report import QUOTES, TABLES
from .speed import measure_short, measure_speed
from .tasks import recall, text_perplexity


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    lengths: tuple[int, ...] = (4096, 8192, 16384, 32768)  # of the operator
    error_lengths: tuple[int, ...] = (1024, 4096, 8192, 16384)
    rule_lengths: tuple[int, ...] = (8192, 16384)
    task_lengths: tuple[int, ...] = (1024, 4096, 16384)
    questions: int = 512  # per length, in the recall part
    windows: int = 8  # of real text, per length


QUICK = Extent(
    lengths=(1024,), error_lengths=(1024,), rule_lengths=(1024,), task_lengths=(1024,), questions=64, windows=1
)


def real_model(device: str) -> Reader | None:
    """SmolLM2, whose heads are measured too where `make real` has fetched it."""
    folder = model_folder("smollm2")
    return Reader(folder, device) if folder.is_dir() else None


SUITE = Suite(
    name="s2o",
    title="S2O",
    parts={
        "speed": lambda run, extent: measure_speed(run.loaded, real_model(run.device), extent.lengths, run.device),
        "short": lambda run, extent: measure_short(run.device),
        "error": lambda run, extent: measure_error(run.loaded, extent.error_lengths, run.device),
        "rules": lambda run, extent: compare_rules(run.loaded, extent.rule_lengths, run.device),
        "recall": lambda run, extent: recall(run.model, extent.task_lengths, run.device, extent.questions),
        "perplexity": lambda run, extent: text_perplexity(run.model, extent.task_lengths, run.device, extent.windows),
    },
    full=Extent(),
    quick=QUICK,
    tables=TABLES,
    quotes=QUOTES,
    pictures={"times": ("speed", times), "errors": ("rules", errors)},
    find_model=partial(bundled_model, "recall"),
    load=lambda run: Captor(run.model, run.device),
    uses_gpu=True,
)
