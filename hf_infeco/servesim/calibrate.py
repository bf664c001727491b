"""
Calibration: a few factors of a profile, fitted so that the simulation repeats a log's first requests.

All arrivals and lengths are known to the simulation, but only the times of the first requests are compared. The errors
on the others, which the fit has not seen, are stored with the profile as the band of every later answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .logs import Log
from .settings import Cluster, Correction, Instance
from .shape import ModelShape
from .simulation import simulate
from .tables import Tables, read_tables

FIRST_STEP = {"prefill": 0.08, "decode": 0.04, "gap_us": 400.0, "link": 0.2, "partial": 0.08}
LOWEST = {"prefill": 0.2, "decode": 0.2, "gap_us": 0.0, "link": 0.05, "partial": -0.5}
CAUTION = 2e-4  # what moving a factor by its first step costs: as much as an error of 1.4 %
SINGLE = {"ttft": 0.25, "tpot": 2.0}  # weight of single requests' errors; those of TTFT depend on a step's phase
METRICS = ("ttft", "tpot", "latency")


def calibrate(
    cluster: Cluster,
    log: Log,
    first: int = 80,
    names: Sequence[str] | None = None,
    rounds: int = 6,
    progress: Callable[[float], Any] | None = None,
) -> tuple[Correction, dict[str, Any]]:
    """
    Fits a correction by coordinate search: each factor is moved up and down, and the steps are halved.

    Args:
        cluster: that of the log, with one kind of instance.
        log: a real run.
        first: requests that are fitted.
        names: what is fitted; by default everything, `link` only where there are several devices.
        rounds: halvings of the step.
        progress: called with the loss after each simulation.

    Returns:
        The correction, and errors in % on the requests after the first ones, as `errors` gives them.

    Raises:
        ValueError: a log that is too short to hold some out, or whose first requests all meet a cold engine, or none
            of whose fitted or held-out requests makes two tokens; a cluster of several kinds.
    """
    (instance,) = cluster.instances if len(cluster.instances) == 1 else (None,)
    if instance is None:
        raise ValueError(f"the cluster has {len(cluster.instances)} kinds of instances; calibrate one at a time")
    if len(log.requests) < first + 20:
        raise ValueError(f"the log has {len(log.requests)} requests; {first} are fitted and at least 20 held out")
    if names is None:
        names = [name for name in FIRST_STEP if name != "link" or instance.devices > 1]
    tables = read_tables(instance.profile, instance.tp, ModelShape.read(instance.model).layers)

    def run(correction: Correction) -> dict[str, np.ndarray]:
        return times(cluster, log, replace(tables, correction=correction))

    fitted = warm(log, first)
    if not len(fitted):
        raise ValueError(
            f"all of the first {first} requests arrive before the log's first token, so none can be fitted; "
            "fit more of them, or take a log of an engine that was warm"
        )
    held_out = np.arange(first, len(log.requests))
    for name, part in (("fitted", fitted), ("held out", held_out)):
        if np.isnan(log.tpot[part]).all():
            raise ValueError(
                f"all {len(part)} requests that are {name} make one token, so there is no time per token to compare; "
                "fit another number of them, or take a log with longer answers"
            )
    seen: dict[Correction, float] = {}

    def loss(correction: Correction) -> float:
        if correction not in seen:
            seen[correction] = misfit(run(correction), log, fitted) + caution(correction)
            if progress is not None:
                progress(seen[correction])
        return seen[correction]

    # What is moved first takes up most of an error that several factors explain: both orders are tried.
    best = min((search(loss, order, rounds) for order in (names, names[::-1])), key=loss)
    return best, errors(run(best), log, held_out)


def search(loss: Callable[[Correction], float], names: Sequence[str], rounds: int) -> Correction:
    """Moves one factor after another as long as that helps, by steps that are halved in each round."""
    best = Correction()
    for halving in range(rounds):
        for name in names:
            for sign in (1.0, -1.0):
                step = sign * FIRST_STEP[name] / 2**halving
                moved = replace(best, **{name: max(getattr(best, name) + step, LOWEST[name])})
                while loss(moved) < loss(best) - 1e-9:
                    best = moved
                    moved = replace(best, **{name: max(getattr(best, name) + step, LOWEST[name])})
    return best


def warm(log: Log, first: int) -> np.ndarray:
    """
    Which of the first requests are fitted: those that arrive before the log's first token meet an engine that is still
    compiling, which no table tells.
    """
    arrivals = np.array([request.arrival for request in log.requests])
    return np.flatnonzero(arrivals[:first] >= (arrivals + log.ttft).min())


def times(cluster: Cluster, log: Log, tables: Tables) -> dict[str, np.ndarray]:
    """What `Results.metrics` gives, but a time per token for every request of the log: nan where it makes one."""

    def given(instance: Instance, shape: ModelShape) -> Tables:
        return tables

    results = simulate(cluster, log.requests, tables=given)
    metrics = results.metrics
    tpot = np.full(results.count, np.nan)
    tpot[results.column("output") > 1] = metrics["tpot"]
    return metrics | {"tpot": tpot}


def misfit(simulated: dict[str, np.ndarray], log: Log, part: np.ndarray) -> float:
    """Squares of relative errors: of the means, which decide capacity, and of single requests, which decide shape."""
    total = 0.0
    for name, weight in SINGLE.items():
        real, ours = getattr(log, name)[part], simulated[name][part]
        known = ~np.isnan(real)
        real, ours = real[known], ours[known]
        total += (ours.mean() / real.mean() - 1.0) ** 2
        total += weight * (np.abs(ours - real).mean() / real.mean()) ** 2
    return float(total)


def caution(correction: Correction) -> float:
    """Keeps what the first requests do not tell where the profile has it."""
    moves = ((getattr(correction, name) - getattr(Correction(), name)) / step for name, step in FIRST_STEP.items())
    return CAUTION * sum(move**2 for move in moves)


def errors(simulated: dict[str, np.ndarray], log: Log, part: np.ndarray) -> dict[str, Any]:
    """Errors in %, by metric: of the mean and of quantiles, and the mean of the requests' absolute errors (MAPE)."""
    found: dict[str, Any] = {"requests": len(log.ttft[part])}
    for name in METRICS:
        found[name] = compare(simulated[name][part], getattr(log, name)[part])
    return found


def compare(ours: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Errors of one metric in %."""
    known = ~np.isnan(real)
    ours, real = ours[known], real[known]
    found = {"mean": ours.mean() / real.mean()}
    for at in (50, 90, 99):
        found[f"p{at}"] = np.percentile(ours, at) / np.percentile(real, at)
    return {name: float(100.0 * (ratio - 1.0)) for name, ratio in found.items()} | {
        "mape": float(100.0 * np.abs(ours / real - 1.0).mean())
    }
