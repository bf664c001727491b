"""All parts of the S2O benchmark, each of which replaces its entry in one JSON file."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from ..documents import follow_results
from ..measuring import check_request, read_results, results_file, rounded, where, write_part
from ..real.fetch import model_folder
from ..real.reader import Reader
from .fidelity import compare_rules, measure_error
from .inputs import Captor
from .report import blocks
from .speed import measure_short, measure_speed
from .tasks import recall, text_perplexity

PARTS = ("speed", "short", "error", "rules", "recall", "perplexity")


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    lengths: tuple[int, ...] = (4096, 8192, 16384, 32768)  # of the operator
    error_lengths: tuple[int, ...] = (1024, 4096, 8192, 16384)
    rule_lengths: tuple[int, ...] = (8192, 16384)
    task_lengths: tuple[int, ...] = (1024, 4096, 16384)
    questions: int = 512  # per length, in the recall part
    windows: int = 8  # of real text, per length


FULL = Extent()
QUICK = Extent(
    lengths=(1024,), error_lengths=(1024,), rule_lengths=(1024,), task_lengths=(1024,), questions=64, windows=1
)


def run(
    parts: Collection[str] = PARTS,
    extent: Extent = FULL,
    model: Path | None = None,
    out: Path | None = None,
    plot: bool = False,
) -> list[Path]:
    """
    Measure `parts` and write each to `out` as soon as it is done; the other entries of the file stay. The tables of
    docs/s2o.md follow the repository's own file.

    Args:
        parts: names out of `PARTS`.
        extent: how much is measured; `QUICK` takes less than a minute and shows no more than that everything runs.
        model: folder of the recall model, the bundled one of the repository by default.
        out: the file, by default `s2o.json` in `measuring.results_folder()`, or if not all is measured that `FULL`
            measures, in the folder for temporary files.
        plot: draw what is in the file, and what the rules visit; the pictures lie beside it.

    Returns:
        The files written.

    Raises:
        ValueError: a part that is none, or a folder without a model.
        ModuleNotFoundError: `plot` without matplotlib.
    """
    if plot:  # imported before anything is measured: matplotlib is an extra, and may be missing
        from .plots import draw_all
    model = check_request(parts, PARTS, model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = out or results_file("s2o", extent == FULL)
    captor = cache(lambda: Captor(model, device))  # not every part needs it
    folder = model_folder("smollm2")  # its heads are measured too, where `make real` has fetched it
    real = cache(lambda: Reader(folder, device) if folder.is_dir() else None)
    measure = {
        "speed": lambda: measure_speed(captor(), real(), extent.lengths, device),
        "short": lambda: measure_short(device),
        "error": lambda: measure_error(captor(), extent.error_lengths, device),
        "rules": lambda: compare_rules(captor(), extent.rule_lengths, device),
        "recall": lambda: recall(model, extent.task_lengths, device, extent.questions),
        "perplexity": lambda: text_perplexity(model, extent.task_lengths, device, extent.windows),
    }
    for part in parts:
        write_part(out, part, {"where": where(device), "entries": rounded(measure[part]())})
    pictures = draw_all(read_results(out), captor().heads(extent.rule_lengths[0], seed=1, last=1), out) if plot else []
    return [out, *pictures, *follow_results(out, blocks)]
