"""All parts of the InnerQ benchmark, each of which replaces its entry in one JSON file."""

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ..documents import follow_results
from ..measuring import Progress, check_request, read_results, results_file, rounded, where, write_part
from .caches import ABLATIONS, FORMS, MAIN, PEERS
from .decode import STEPS, measure_decoding
from .quality import Reader, layer_errors, perplexity, recall
from .report import blocks
from .sizes import LENGTHS, measure_bytes
from .step import CELLS, REPEATS, measure_cached_step, measure_step

PARTS = ("bytes", "step", "cached_step", "decode", "recall", "perplexity", "errors")


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


FULL = Extent()
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


def run(
    parts: Collection[str] = PARTS,
    extent: Extent = FULL,
    model: Path | None = None,
    out: Path | None = None,
    plot: bool = False,
) -> list[Path]:
    """
    Measure `parts` and write each to `out` as soon as it is done; the other entries of the file stay. The tables of
    docs/innerq.md follow the repository's own file.

    Recall and perplexity take an hour or so in full. What is done of them lies in a `.progress` file beside `out`,
    which is removed once the part is written.

    Args:
        parts: names out of `PARTS`.
        extent: how much is measured; `QUICK` takes less than a minute and shows no more than that everything runs.
        model: folder of the recall model, the bundled one of the repository by default.
        out: the file, by default `innerq.json` in `measuring.results_folder()`, or if not all is measured that `FULL`
            measures, in the folder for temporary files.
        plot: draw what is in the file; the pictures lie beside it.

    Returns:
        The files written.

    Raises:
        ValueError: a part that is none, or a folder without a model.
        ModuleNotFoundError: `plot` without matplotlib.
    """
    if plot:  # imported before anything is measured: matplotlib is an extra, and may be missing
        from .plots import draw_all
    model = check_request(parts, PARTS, model)
    out = out or results_file("innerq", extent == FULL)
    reader = cache(lambda: Reader(model, "cpu"))  # not every part needs it
    texts = [
        (*each, MAIN | PEERS | (ABLATIONS | FORMS if each[0] <= EVERYTHING_UP_TO else {})) for each in extent.windows
    ]

    def progress(part: str) -> Progress:
        return Progress(out.with_suffix(f".{part}.progress"))

    measure = {
        "bytes": lambda: measure_bytes(extent.byte_lengths),
        "step": lambda: measure_step(extent.cells, extent.repeats),
        "cached_step": lambda: measure_cached_step(extent.cached_step_tokens, repeats=extent.repeats),
        "decode": lambda: measure_decoding(reader(), extent.task_tokens, extent.steps),
        "recall": lambda: recall(
            reader(), extent.task_tokens, extent.questions, extent.ablation_questions, progress("recall")
        ),
        "perplexity": lambda: [
            entry
            for length, windows, names in texts
            for entry in perplexity(reader(), length, windows, names, progress("perplexity"))
        ],
        "errors": lambda: layer_errors(model, reader(), extent.error_tokens),
    }
    for part in parts:
        # Threads of OpenMP that wait by spinning take cores from our own: without "passive" times are higher.
        place = where("cpu") | {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "unset")}
        write_part(out, part, {"where": place, "entries": rounded(measure[part]())})
        progress(part).path.unlink(missing_ok=True)
    pictures = draw_all(read_results(out), out) if plot else []
    return [out, *pictures, *follow_results(out, blocks)]
