"""Building, saving and loading an index: time, memory and bytes."""

import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import torch

import hf_infeco

from ..measuring import timed
from .catalogues import TOKENS, catalogue

CPU = torch.device("cpu")


def measure_build(items: int) -> dict[str, Any]:
    """Building and saving, then loading, each in a process of its own, whose peak memory counts."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1, None, (), 1) as pool:
        return pool.apply(build_and_save, (items, folder)) | pool.apply(load, (folder,))


def build_and_save(items: int, folder: str) -> dict[str, Any]:
    sequences = catalogue(items)
    index_class = hf_infeco.StaticIndex  # its first use imports it
    before = peak_megabytes()
    seconds, index = timed(CPU, lambda: index_class.build(sequences, vocab_size=TOKENS))
    peak = peak_megabytes()
    return {
        "items": items,
        "build_seconds": round(seconds, 2),
        "peak_megabytes": peak,
        "peak_megabytes_before": before,  # Python, torch, and the sequences as they came in
        "bytes_per_sequence": index.describe()["bytes_per_sequence"],
        "save_seconds": round(timed(CPU, lambda: index.save_pretrained(folder))[0], 2),
        "file_megabytes": round(sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6, 1),
    }


def peak_megabytes() -> int:
    """Most memory that this process had; getrusage would tell its parent's, where that had more."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def load(folder: str) -> dict[str, Any]:
    index_class = hf_infeco.StaticIndex  # its first use imports it
    seconds, index = timed(CPU, lambda: index_class.from_pretrained(folder))
    processor = hf_infeco.StaticLogitsProcessor(index, prompt_length=1)
    scores = torch.zeros(1, TOKENS)
    first_step = timed(CPU, lambda: processor(torch.ones(1, 1, dtype=torch.int64), scores))[0]
    return {"load_seconds": round(seconds, 4), "first_step_seconds": round(first_step, 3)}
