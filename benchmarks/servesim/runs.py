"""The public vLLM runs: every metric of ours and of LLMServingSim's prediction against what the engine did."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from hf_infeco.servesim import Correction
from hf_infeco.servesim.calibrate import calibrate, compare, times
from hf_infeco.servesim.cells import csv_rows
from hf_infeco.servesim.shape import ModelShape
from hf_infeco.servesim.tables import read_tables

from ..measuring import Progress
from .public import PublicRun

SEEN = 0.010  # s from the scheduler's inbox to a seat: what waits longer was queued
METRICS = ("ttft", "ttft_from_queue", "tpot", "latency")


def measure_runs(runs: tuple[PublicRun, ...], first: int, rounds: int, progress: Progress) -> list[dict[str, Any]]:
    """An entry per run, simulator, part of the requests and metric; and one per run and fit with what was fitted."""
    entries = []
    for run in runs:
        entries += progress.once(run.folder, lambda r=run: measure_run(r, first, rounds))
    return entries


def measure_run(run: PublicRun, first: int, rounds: int) -> list[dict[str, Any]]:
    real, theirs, queued = read_truth(run)
    parts = {
        "all": np.arange(len(queued)),
        "held out": np.arange(first, len(queued)),
        "not queued": np.flatnonzero(~queued),
        "queued": np.flatnonzero(queued),
    }
    has_link = run.cluster.instances[0].devices > 1
    log = run.log
    fits = {"hf_infeco": ["link"] if has_link else [], "hf_infeco, calibrated": None}
    predictions = {"LLMServingSim": (theirs, {})}
    for who, names in fits.items():
        fitted = Correction() if names == [] else calibrate(run.cluster, log, first, names, rounds)[0]
        predictions[who] = (predict(run, fitted), asdict(fitted))
    return [
        {
            "run": run.title,
            "who": who,
            "part": part,
            "metric": metric,
            "requests": len(chosen),
            "real_mean_s": float(real[metric][chosen].mean()),
            "fitted": fitted,
            **compare(predicted[metric][chosen], real[metric][chosen]),
        }
        for who, (predicted, fitted) in predictions.items()
        for part, chosen in parts.items()
        for metric in METRICS
    ]


def predict(run: PublicRun, correction: Correction) -> dict[str, np.ndarray]:
    """Ours, by metric, in the order of the trace."""
    instance = run.cluster.instances[0]
    tables = read_tables(instance.profile, instance.tp, ModelShape.read(instance.model).layers)
    return times(run.cluster, run.log, replace(tables, correction=correction))


def read_truth(run: PublicRun) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """The engine's times, LLMServingSim's, and which requests had to wait for a seat."""
    rows = [row for _, row in csv_rows(run.rows)]
    at = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    real = {
        "ttft": at["first_token_s"] - at["arrival_s"],
        "ttft_from_queue": at["first_token_s"] - at["queued_s"],
        "tpot": (at["last_token_s"] - at["first_token_s"]) / (at["output_tokens"] - 1),
        "latency": at["last_token_s"] - at["arrival_s"],
    }
    theirs = {
        "ttft": at["llmss_ttft_s"],
        "ttft_from_queue": at["llmss_ttft_s"],  # it does not tell the two apart
        "tpot": at["llmss_tpot_s"],
        "latency": at["llmss_end_s"] - at["llmss_arrival_s"],
    }
    return real, theirs, at["scheduled_s"] - at["queued_s"] >= SEEN


def measure_single(runs: tuple[PublicRun, ...]) -> list[dict[str, Any]]:
    """An entry per run with the TTFT of each third request, nothing fitted."""
    entries = []
    for run in runs:
        real, _, _ = read_truth(run)
        ours = predict(run, Correction())["ttft"]
        arrival = np.array([request.arrival for request in run.log.requests])
        shown = {"arrival_s": arrival, "real_s": real["ttft"], "ours_s": ours}
        entries.append({"run": run.title, **{name: values[::3].round(3).tolist() for name, values in shown.items()}})
    return entries
