"""Time against dense attention at a given error, over length, input, head_dim and dtype."""

from collections.abc import Callable, Iterator
from functools import cache
from math import sqrt

import torch
from tqdm import tqdm

from hf_infeco import S2OConfig
from hf_infeco.prefill import causal_attention
from hf_infeco.s2o.operation import SparsePrefill

from ..measuring import median_seconds
from ..real.reader import Reader
from .inputs import LAST_LAYERS, Captor, Heads, generated, real_heads
from .operator import cut, dense, distance, sparse, truly_missed

POINTS = (0.05, 0.02, 0.01)  # relative L2 error against dense attention in float32
# A larger tau would often do on these heads, and is not safe on real models: docs/real.md.
LEAST_TAU, MOST_TAU, BISECTIONS = 1e-5, S2OConfig().tau, 7  # which settles tau to 5 %
REPEATS = 3
SHORT, SHORT_REPEATS = (256, 512, 1024, 2048, 4096), 101
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure_speed(captor: Captor, real: Reader | None, lengths: tuple[int, ...], device: str) -> list[dict]:
    """
    One entry per input, length, dtype and point, at the largest tau whose error is that of the point. `real` is a
    real model, whose heads are taken up to the length that it was trained for.
    """
    entries = []
    for seq_len in lengths:
        makers: dict[str, Callable[[], Heads]] = {
            "generated, head_dim 64": lambda at=seq_len: generated(at, 64, 1),
            "generated, head_dim 128": lambda at=seq_len: generated(at, 128, 1),
            "captured, last two layers": lambda at=seq_len: captor.heads(at, 1, LAST_LAYERS),
        }
        if real is not None and seq_len <= real.model.config.max_position_embeddings:
            makers["SmolLM2, every third layer"] = lambda at=seq_len: real_heads(real, at).to(torch.float32)
        for name, make in tqdm(makers.items(), desc=f"speed at {seq_len}", unit="input"):
            cell = {"input": name, "tokens": seq_len}
            entries += [cell | entry for entry in _measure(make().to(device))]
    return entries


def measure_short(device: str) -> list[dict]:
    """What asking costs where the answer is dense: defaults against dense attention below the measured crossover."""
    entries, config = [], S2OConfig()
    for seq_len in tqdm(SHORT, desc="below the crossover", unit="length"):
        heads = generated(seq_len, 64, 1).to(device).to(torch.bfloat16)
        runs = {
            "dense": lambda heads=heads: dense(heads),
            "s2o": lambda heads=heads: causal_attention(*heads, SparsePrefill(config)),
        }
        for run in runs.values():  # measures the crossover, once
            run()
        seconds = median_seconds(heads.query.device, runs, SHORT_REPEATS)
        density = float(causal_attention(*heads, SparsePrefill(config))[1].density)
        entries.append(
            {"tokens": seq_len, **seconds, "over_dense": seconds["s2o"] / seconds["dense"], "density": density}
        )
    return entries


def _taus(heads: Heads, reference: torch.Tensor) -> dict[float, float]:
    """The largest tau found for each point, without the points that even the least tau misses."""

    @cache  # the points share their first steps
    def error(tau: float) -> float:
        return distance(sparse(heads, tau)[0], reference)["error"]

    found = {}
    for point in POINTS:
        if error(MOST_TAU) <= point:
            found[point] = MOST_TAU
            continue
        low, high = LEAST_TAU, MOST_TAU
        for _ in range(BISECTIONS):
            tau = sqrt(low * high)
            low, high = (tau, high) if error(tau) <= point else (low, tau)
        if low > LEAST_TAU:
            found[point] = low
    return found


def _measure(heads: Heads) -> Iterator[dict]:
    """All times of an input are taken in turn; `speedup` is over the faster of the dense ones."""
    reference = dense(heads)
    by_dtype = {name: heads.to(dtype) for name, dtype in DTYPES.items()}
    taus = {name: _taus(cast, reference) for name, cast in by_dtype.items()}
    # In each dtype: on a CPU with AMX, rows of bfloat16 decide in tiles.
    missed = {(name, tau): truly_missed(by_dtype[name], tau) for name in DTYPES for tau in set(taus[name].values())}
    runs: dict[tuple, Callable] = {}
    for name, cast in by_dtype.items():
        runs[name, "dense"] = lambda cast=cast: dense(cast)
        runs |= {(name, tau): lambda cast=cast, tau=tau: sparse(cast, tau) for tau in taus[name].values()}
        runs[name, "cut"] = lambda cast=cast: cut(cast)  # not behind torch's threads, which go on spinning for a while
    seconds = median_seconds(heads.query.device, runs, REPEATS)
    fastest = min(seconds[name, "dense"] for name in DTYPES)
    for name, cast in by_dtype.items():
        dense_error = distance(dense(cast), reference)["error"]  # of the dtype alone
        for point, tau in taus[name].items():
            out, shares = sparse(cast, tau)
            yield {
                "dtype": name,
                "point": point,
                "tau": tau,
                "error": distance(out, reference)["error"],
                "dense_error": dense_error,
                "dense_seconds": seconds[name, "dense"],
                "s2o_seconds": seconds[name, tau],
                "speedup": fastest / seconds[name, tau],
                "ranking_share": seconds[name, "cut"] / seconds[name, tau],
                **shares,
                "truly_missed": missed[name, tau],
            }
