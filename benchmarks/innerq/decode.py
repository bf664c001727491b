"""Tokens per second of the whole recall model, decoding after a document: its dense cache against InnerQ's."""

from collections.abc import Callable

import torch

from hf_infeco import CACHE_NAME

from ..measuring import median_seconds
from .caches import MAIN, filled
from .quality import Reader

STEPS = 48


@torch.no_grad()
def measure_decoding(reader: Reader, seq_len: int = 16384, steps: int = STEPS) -> list[dict]:
    """One entry per cache: the median step of `steps`, all caches in turn, each step appending a token."""
    exact = reader.prefill(reader.text[:seq_len])
    # The dense cache is served by the model as transformers loads it.
    models = {name: reader.dense if name == "dense" else reader.packed for name in MAIN}
    token = reader.text[seq_len : seq_len + 1][None].to(reader.dense.device)

    def step(name: str, cache) -> Callable:
        return lambda: models[name](token, **{CACHE_NAME: cache}, use_cache=True)

    runs = {name: step(name, filled(make, reader.dense.config, exact)) for name, make in MAIN.items()}
    for run in runs.values():
        run()
    seconds = median_seconds(reader.dense.device, runs, steps)
    return [
        {
            "cache": name,
            "tokens": seq_len,
            "seconds_per_token": seconds[name],
            "tokens_per_second": 1 / seconds[name],
            "over_dense": seconds["dense"] / seconds[name],
        }
        for name in runs
    ]
