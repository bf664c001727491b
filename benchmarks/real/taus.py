"""How far S2O's `tau` may go on a real model: what each costs in perplexity, and the operator's time beside it."""

from collections.abc import Callable
from dataclasses import replace

import torch
from tqdm import tqdm

import hf_infeco

from ..measuring import Progress, median_seconds
from ..s2o.inputs import real_heads
from ..s2o.operator import dense, distance, sparse
from .reader import Reader
from .text import compare, means
from .ways import S2O

TAUS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
REPEATS = 3


def measure_taus(reader: Reader, lengths: tuple[int, ...], progress: Progress) -> list[dict]:
    """One entry per length and tau: the second half of a window that is read in one forward."""
    return [
        {"tokens": seq_len} | entry
        for seq_len in lengths
        for entry in progress.once(f"taus at {seq_len}", lambda at=seq_len: _over_dense(reader, at))
    ]


@torch.no_grad()
def _over_dense(reader: Reader, seq_len: int) -> list[dict]:
    (ids,) = reader.windows(seq_len, 1)
    scored = seq_len // 2

    def logits() -> torch.Tensor:
        return reader.model(ids[None], use_cache=False, logits_to_keep=scored).logits[0, :-1]

    exact, entries = logits(), []
    for tau in tqdm(TAUS, desc=f"taus at {seq_len}", unit="tau"):
        with hf_infeco.patched(reader.model, s2o=replace(S2O, tau=tau), innerq=False):
            sums = compare(logits(), exact, ids[-scored + 1 :])
            density = hf_infeco.report(reader.model).s2o.density
        entries.append({"tau": tau, "density": density, **means(sums)})
    return entries


def measure_speed(reader: Reader, lengths: tuple[int, ...]) -> list[dict]:
    """
    One entry per length and tau, on the heads of every third layer side by side. All times of a length are taken in
    turn; `speedup` is over the faster of dense attention in float32 and in bfloat16.
    """
    entries = []
    for seq_len in lengths:
        heads = real_heads(reader, seq_len)
        wide, half = heads.to(torch.float32), heads.to(torch.bfloat16)
        reference = dense(wide)
        runs: dict[object, Callable] = {
            "float32": lambda wide=wide: dense(wide),
            "bfloat16": lambda half=half: dense(half),
        }
        runs |= {tau: lambda half=half, tau=tau: sparse(half, tau) for tau in TAUS}
        seconds = median_seconds(half.query.device, runs, REPEATS)
        fastest = min(seconds["float32"], seconds["bfloat16"])
        for tau in TAUS:
            out, shares = sparse(half, tau)
            entry = {"tokens": seq_len, "tau": tau, "error": distance(out, reference)["error"], **shares}
            times = {"dense_seconds": fastest, "s2o_seconds": seconds[tau], "speedup": fastest / seconds[tau]}
            entries.append(entry | times)
    return entries
