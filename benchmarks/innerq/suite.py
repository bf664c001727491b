"""The InnerQ benchmark: its parts, and how much of each is measured."""

import os
from dataclasses import dataclass, field
from functools import partial

from ..measuring import bundled_model
from ..suite import Run, Suite
from .caches import ABLATIONS, FORMS, MAIN, PEERS
from .decode import STEPS, measure_decoding
from .plots import errors, sizes, step
from .plots import perplexity as perplexity_picture
from .quality import Reader, layer_errors, perplexity, recall
from .report import TABLES
from .sizes import LENGTHS, measure_bytes
from .step import CELLS, REPEATS, measure_cached_step, measure_step


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    byte_lengths: tuple[int, ...] = LENGTHS
    cells: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=lambda: CELLS)
    repeats: int = REPEATS
    cached_step_tokens: int = 8192
    task_tokens: int = 16384  # of a document, for decoding and recall
    steps: int = STEPS
    questions: int = 4032  # to the dense cache and the three presets
    ablation_questions: int = 1024  # to each of the others
    windows: tuple[tuple[int, int], ...] = ((4096, 12), (16384, 4))  # of text: length, and how many
    error_tokens: int = 16384


QUICK = Extent(
    byte_lengths=(1024,),
    cells={(1, 512): (4,)},
    repeats=1,
    cached_step_tokens=512,
    task_tokens=1024,
    steps=1,
    questions=64,
    ablation_questions=64,
    windows=((1024, 1),),
    error_tokens=512,
)
EVERYTHING_UP_TO = 4096  # tokens; longer windows of text are read by the presets and KIVI only


def measure_perplexity(run: Run, extent: Extent) -> list[dict]:
    entries = []
    for length, windows in extent.windows:
        names = MAIN | PEERS | (ABLATIONS | FORMS if length <= EVERYTHING_UP_TO else {})
        entries += perplexity(run.loaded, length, windows, names, run.progress("perplexity"))
    return entries


def measure_recall(run: Run, extent: Extent) -> list[dict]:
    counts = (extent.task_tokens, extent.questions, extent.ablation_questions)
    return recall(run.loaded, *counts, run.progress("recall"))


SUITE = Suite(
    name="innerq",
    title="InnerQ",
    parts={
        "bytes": lambda run, extent: measure_bytes(extent.byte_lengths),
        "step": lambda run, extent: measure_step(extent.cells, extent.repeats),
        "cached_step": lambda run, extent: measure_cached_step(extent.cached_step_tokens, repeats=extent.repeats),
        "decode": lambda run, extent: measure_decoding(run.loaded, extent.task_tokens, extent.steps),
        "recall": measure_recall,
        "perplexity": measure_perplexity,
        "errors": lambda run, extent: layer_errors(run.model, run.loaded, extent.error_tokens),
    },
    full=Extent(),
    quick=QUICK,
    tables=TABLES,
    pictures={
        "step": ("step", step),
        "bytes": ("bytes", sizes),
        "perplexity": ("perplexity", perplexity_picture),
        "errors": ("errors", errors),
    },
    find_model=partial(bundled_model, "recall"),
    load=lambda run: Reader(run.model, run.device),
    # Threads of OpenMP that wait by spinning take cores from our own: without "passive" times are higher.
    place=lambda run: {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "unset")},
)
