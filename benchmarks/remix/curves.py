"""Puzzles solved and forwards taken, by strategy and setting."""

from itertools import pairwise
from math import sqrt
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from hf_infeco.training.testbed.puzzle.evaluate import as_entry, held_out, solve
from hf_infeco.training.testbed.puzzle.puzzles import TASKS, Puzzle

from ..measuring import Progress

TAUS = (0.3, 0.5, 0.8, 0.95, 0.99, 0.999)
TOP_K = (2, 4, 8)
# What each setting of ReMix does, the others at their defaults but for a tau_conf at which positions wait.
TAU = 0.99
ABLATIONS: dict[str, tuple[Any, ...]] = {
    "beta": (0.0, 0.25, 0.5, 1.0),
    "tau_rej": (0.03, 0.1, 0.7),
    "sticky_reject": (True,),
    "block_length": (4, 8),
}
# Kinds of puzzles: what is drawn, and how. Training has seen five clues and more.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {task: (task, {}) for task in TASKS}
HARD: dict[str, tuple[str, dict[str, Any]]] = {"sudoku, 4 clues": ("sudoku", {"fewest": 4, "most": 4})}


def settings() -> dict[str, dict[str, Any]]:
    """Every point of the curves by name."""
    points: dict[str, dict[str, Any]] = {"one": {"strategy": "one"}}
    points |= {f"top_k {k}": {"strategy": "top_k", "top_k": k} for k in TOP_K}
    for strategy in ("confidence", "remix"):
        points |= {f"{strategy} {tau}": {"strategy": strategy, "tau_conf": tau} for tau in TAUS}
    return points


def measure_curves(
    model: PreTrainedModel, count: int, progress: Progress, kinds: dict[str, tuple[str, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """One entry per kind of puzzle and setting; all settings of a kind get the same puzzles."""
    entries = []
    for kind, (task, drawn) in kinds.items():
        puzzles = held_out(task, count, **drawn)
        for name, how in tqdm(settings().items(), desc=kind):
            found = progress.once(f"{kind} {name}", lambda h=how, t=task, p=puzzles: measure_point(model, t, p, h))
            one = progress.pieces[f"{kind} one"]
            entries.append({"task": kind, "point": name, **how, **found["entry"], "over_one": paired(found, one)})
    return entries


def measure_ablations(model: PreTrainedModel, count: int, progress: Progress) -> list[dict[str, Any]]:
    """One entry per setting and value, on the hard puzzles: on the others few positions wait long enough to mix."""
    entries = []
    for kind, (task, drawn) in HARD.items():
        puzzles = held_out(task, count, **drawn)
        for setting, value in tqdm([(name, value) for name in ABLATIONS for value in ABLATIONS[name]], desc=kind):
            how = {"tau_conf": TAU, setting: value}
            found = progress.once(f"{kind} {how}", lambda h=how, t=task, p=puzzles: measure_point(model, t, p, h))
            entries.append({"task": kind, "setting": setting, "value": value, **found["entry"]})
    return entries


def measure_point(model: PreTrainedModel, task: str, puzzles: list[Puzzle], how: dict[str, Any]) -> dict[str, Any]:
    """Accuracy and forwards of one setting, and which puzzles it solved."""
    is_solved, forwards = solve(model, task, puzzles, **how)
    return {"entry": as_entry(is_solved, forwards), "solved": is_solved.int().tolist()}


def paired(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Difference of two accuracies on the same puzzles, and half its 95 % interval."""
    difference = torch.tensor(ours["solved"], dtype=torch.float64) - torch.tensor(theirs["solved"])
    half = 1.959964 * float(difference.std()) / sqrt(len(difference))
    return {"difference": float(difference.mean()), "half_interval_95": half}


def forwards_at(curve: list[tuple[float, float]], accuracy: float) -> float | None:
    """
    The fewest forwards with which a curve of points (forwards, accuracy) reaches an accuracy, on straight lines
    between points that follow each other; None if it does not.
    """
    curve = sorted(curve)
    reached = [forwards for forwards, share in curve if share >= accuracy]
    for (before, low), (after, high) in pairwise(curve):
        if low < accuracy <= high:
            reached.append(before + (after - before) * (accuracy - low) / (high - low))
    return min(reached, default=None)
