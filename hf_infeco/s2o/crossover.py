"""From how many keys on sparse prefill is faster than dense: measured once per device and shape of heads."""

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from transformers.utils import logging

from ..kernels.dispatch import choose
from .dense import dense_attention

logger = logging.get_logger(__name__)

VARIABLE = "HF_INFECO_CACHE"  # folder of the file, instead of hf_infeco/ in Hugging Face's own
LENGTHS = (1024, 2048, 4096, 8192, 16384)
NEVER = 2**62
GAIN = 0.9  # of the dense time: what sparse prefill must stay below, or it is not worth what it leaves out
REPEATS = 3

_known: dict[str, int] = {}


def measured_crossover(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: dict[str, Any]) -> int:
    """
    Least number of keys, out of `LENGTHS`, from which on S2O with `settings` is faster than dense attention on heads
    like these; `NEVER` on devices without a fast kernel.

    The first call for a device and a shape of heads takes about a second; the answer is kept in `crossover.json`, in
    the folder that `HF_INFECO_CACHE` names. Delete it to measure anew.
    """
    choice = choose("s2o_prefill", query.device)
    if choice.backend == "reference":
        return NEVER
    name = _name(choice.backend, query, key, value, settings)
    if name not in _known:
        _known.update(_read())
    if name not in _known:
        _known[name] = _measure(query, key, value, settings, choice.module.s2o_prefill)
        _write({**_read(), name: _known[name]})
    return _known[name]


def _name(backend: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: dict[str, Any]) -> str:
    """What the answer depends on."""
    on_gpu = query.device.type == "cuda"
    device = torch.cuda.get_device_name(query.device) if on_gpu else f"cpu, {torch.get_num_threads()} threads"
    heads = f"{query.shape[1]}/{key.shape[1]} heads of {query.shape[3]} and {value.shape[3]}"
    chosen = ", ".join(f"{field}={setting}" for field, setting in settings.items())
    return f"{device}; {backend}, torch {torch.__version__}; {query.dtype}, {heads}; {chosen}"


def _measure(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: dict[str, Any], sparse: Callable
) -> int:
    """On noise, which has least to leave out: on real heads S2O is faster than here."""
    rng = torch.Generator(query.device).manual_seed(0)

    def noise(like: torch.Tensor, length: int) -> torch.Tensor:
        shape = (1, like.shape[1], length, like.shape[3])
        return torch.randn(shape, generator=rng, dtype=torch.float32, device=like.device).to(like.dtype)

    for length in LENGTHS:
        heads = noise(query, length), noise(key, length), noise(value, length)
        scale = query.shape[3] ** -0.5
        run_sparse = partial(sparse, *heads, scale=scale, **settings)
        run_dense = partial(dense_attention, *heads, scale=scale)
        run_sparse(), run_dense()  # compile, and fill the caches
        pairs = [(_seconds(run_sparse, query), _seconds(run_dense, query)) for _ in range(REPEATS)]
        if median(fast / slow for fast, slow in pairs) < GAIN:
            return length
    return NEVER


def _seconds(run: Callable[[], object], query: torch.Tensor) -> float:
    def wait() -> None:
        if query.is_cuda:
            torch.cuda.synchronize(query.device)

    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def _path() -> Path:
    return Path(os.environ.get(VARIABLE) or Path(HF_HOME) / "hf_infeco") / "crossover.json"


def _read() -> dict[str, int]:
    try:
        return json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet, or cut off while it was written: measured again
        return {}


def _write(known: dict[str, int]) -> None:
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        logger.warning_once(f"S2O's crossover could not be kept in {path} ({error}): every process measures it anew.")
