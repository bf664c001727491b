"""All parts of the ReMix benchmark, each of which replaces its entry in one JSON file."""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hf_infeco.training.testbed.puzzle.evaluate import load_model

from ..documents import follow_results
from ..measuring import ROOT, Progress, check_parts, read_results, results_file, rounded, where, write_part
from .cost import WIDE, measure_answers, measure_forwards
from .curves import HARD, KINDS, measure_ablations, measure_curves
from .report import blocks

PARTS = ("curves", "hard", "ablations", "forwards", "answers")
SEEN = {kind: KINDS[kind] for kind in ("sudoku", "addition")}  # what is learned from masks alone
MODEL = ROOT / "examples" / "models" / "puzzle"


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    puzzles: int = 500  # of each kind
    repeats: int = 24  # of a timing
    batches: tuple[int, ...] = (1, 16)
    wide: dict[str, Any] = field(default_factory=lambda: WIDE)
    answers: int = 32  # puzzles that are timed one by one


FULL = Extent()
QUICK = Extent(puzzles=4, repeats=1, batches=(1,), wide={**WIDE, "num_hidden_layers": 1, "vocab_size": 512}, answers=1)


def run(
    parts: Collection[str] = PARTS,
    extent: Extent = FULL,
    model: Path | None = None,
    plot: bool = False,
    out: Path | None = None,
) -> list[Path]:
    """
    Measure `parts` and write each to `out` as soon as it is done; the other entries of the file stay. The tables of
    docs/remix.md follow the repository's own file.

    What is done of a part lies in a `.progress` file beside `out`, which is removed once the part is written.

    Args:
        parts: names out of `PARTS`, or `"masks"`: the curves again, of a model given that has seen masks alone.
        extent: how much is measured; `QUICK` shows no more than that everything runs.
        model: a folder of a puzzle model, by default the bundled one.
        plot: draw the curves too, beside the file.
        out: the file, by default `remix.json` in `measuring.results_folder()`, in the folder for temporary files if
            less than all is measured.

    Returns:
        The files written.

    Raises:
        ValueError: a part that is none, or a folder without a model.
    """
    check_parts(parts, (*PARTS, "masks"))
    folder = model or MODEL
    if not (folder / "config.json").is_file():
        raise ValueError(f"There is no model in {folder}: name a copy of examples/models/puzzle with --model.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = out or results_file("remix", extent == FULL)
    loaded = cache(lambda: load_model(folder, device))
    strategies = {name: {"strategy": name} for name in ("one", "confidence", "remix")}

    def progress(part: str) -> Progress:
        return Progress(out.with_suffix(f".{part}.progress"))

    measure = {
        "curves": lambda: measure_curves(loaded(), extent.puzzles, progress("curves"), KINDS),
        "hard": lambda: measure_curves(loaded(), extent.puzzles, progress("hard"), HARD),
        "masks": lambda: measure_curves(loaded(), extent.puzzles, progress("masks"), SEEN),
        "ablations": lambda: measure_ablations(loaded(), extent.puzzles, progress("ablations")),
        "forwards": lambda: measure_forwards(loaded(), extent.batches, extent.repeats, extent.wide),
        "answers": lambda: measure_answers(loaded(), extent.answers, strategies),
    }
    for part in parts:
        write_part(out, part, {"where": where(device), "entries": rounded(measure[part]())})
        progress(part).path.unlink(missing_ok=True)
    written = [out, *follow_results(out, blocks)]
    if plot:
        from .plots import draw_all

        written += draw_all(read_results(out), out)
    return written
