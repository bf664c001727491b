"""What a prompt of each length costs a whole model, dense and patched as it comes: prefill, decoding, bytes."""

from statistics import median

import torch
from tqdm import tqdm
from transformers import Cache

import hf_infeco
from hf_infeco import CACHE_NAME, InnerQConfig, S2OConfig

from ..measuring import timed
from .reader import Reader
from .ways import Way

WAYS = {"dense": Way(), "patched": Way(S2OConfig(), InnerQConfig())}
WARM_UP = 4096  # tokens
STEPS = 16  # tokens decoded one by one; the first is not counted
REPEATS = 3


def measure_lengths(reader: Reader, lengths: tuple[int, ...]) -> list[dict]:
    """One entry per length and way, on a model that has compiled and measured all that it will."""
    with WAYS["patched"].at_work(reader.model):
        hf_infeco.warm_up(reader.model, reader.windows(min(max(lengths), WARM_UP), 1)[0][None])
    return [entry for seq_len in tqdm(lengths, desc="lengths", unit="length") for entry in _measure(reader, seq_len)]


@torch.no_grad()
def _measure(reader: Reader, seq_len: int) -> list[dict]:
    (ids,) = reader.windows(seq_len, 1)
    prefill: dict[str, list[float]] = {way: [] for way in WAYS}
    steps: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for _ in range(REPEATS):
        for name, way in WAYS.items():
            with way.at_work(reader.model):
                taken, cache = timed(reader.model.device, lambda: _prefill(reader, ids))
                prefill[name].append(taken)
                steps[name] = _step_seconds(reader, cache, ids)
                sizes[name] = hf_infeco.cache_nbytes(cache)
    return [
        {
            "tokens": seq_len,
            "way": name,
            "prefill_seconds": median(prefill[name]),
            "step_seconds": steps[name],
            "bytes": sizes[name],
        }
        for name in WAYS
    ]


def _prefill(reader: Reader, ids: torch.Tensor) -> Cache:
    return reader.model(ids[None], use_cache=True, logits_to_keep=1)[CACHE_NAME]


def _step_seconds(reader: Reader, cache: Cache, ids: torch.Tensor) -> float:
    """Of a decode step behind what `cache` holds."""
    steps = [
        timed(reader.model.device, lambda token=token: reader.model(token[None, None], **{CACHE_NAME: cache}))[0]
        for token in ids[:STEPS]
    ]
    return median(steps[1:])
