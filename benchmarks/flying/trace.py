"""A trace with calm phases, a burst, long prompts and priorities, under static layouts and under each policy."""

import csv
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_infeco.flying import FlyingManager
from hf_infeco.scheduling import POLICIES, make_policy

from .switching import ids_of, load, pool

# Requests of the Azure LLM inference trace 2023, conversations (CC-BY-4.0): arrival in seconds, tokens in, tokens out.
TRACE = Path(__file__).with_name("azure_conversations.csv")


class Arrival(NamedTuple):
    phase: str
    second: float
    prompt_tokens: int
    new_tokens: int
    priority: int = 0


def arrivals(calm: int, burst: int, spacing: float, shrink: int) -> list[Arrival]:
    """
    Lengths of the trace over `shrink`. `calm` requests `spacing` seconds apart, then `burst` at once, then calm again;
    the last of each calm phase has priority.
    """
    with TRACE.open() as file:
        lengths = [(int(row["prompt_tokens"]), int(row["new_tokens"])) for row in csv.DictReader(file)]
    found, second = [], 0.0
    for phase, count, gap in (("calm", calm, spacing), ("burst", burst, 0.0), ("calm again", calm, spacing)):
        for index in range(count):
            prompt, new = lengths[len(found) % len(lengths)]
            priority = int(phase != "burst" and index == count - 1)
            found.append(Arrival(phase, second, max(prompt // shrink, 8), max(new // shrink, 4), priority))
            second += gap
        second += spacing
    return found


def measure_trace(folder: Path, trace: list[Arrival]) -> list[dict[str, Any]]:
    """Times to the first token by phase, and tokens per second, of each layout in turn on the same processes."""
    model = load(str(folder))
    budget = sum(each.prompt_tokens + each.new_tokens for each in trace)
    found = []
    for name in ("width 1", "width 2", *POLICIES):
        policy = make_policy(name, dwell=0.2) if name in POLICIES else None
        manager = FlyingManager(model, continuous_batching_config=pool(budget), policy=policy, timeout=60.0)
        manager.start()
        if not manager.is_front:
            manager.wait()
            continue
        if name == "width 2":
            manager.switch(2)
        found.append({"layout": name, **_replay(manager, model, trace)})
        manager.stop()
    return found


def _replay(manager: FlyingManager, model: Any, trace: list[Arrival]) -> dict[str, Any]:
    prompts = [ids_of(model, each.prompt_tokens, seed) for seed, each in enumerate(trace)]
    sent: dict[str, int] = {}
    first, last = {}, {}
    before, start, index = len(manager.switches), time.perf_counter(), 0
    while len(last) < len(trace):
        now = time.perf_counter() - start
        while index < len(trace) and trace[index].second <= now:
            each = trace[index]
            name = manager.add_request(
                prompts[index], max_new_tokens=each.new_tokens, streaming=True, priority=each.priority
            )
            sent[name], index = index, index + 1
        output = manager.get_result(timeout=0.005)
        if output is not None:
            now = time.perf_counter() - start
            first.setdefault(sent[output.request_id], now)
            if output.is_finished():
                last[sent[output.request_id]] = now
    waits = {each.phase: [] for each in trace}
    for number, each in enumerate(trace):
        waits[each.phase].append(first[number] - each.second)
    pace = [(last[n] - first[n]) / (each.new_tokens - 1) for n, each in enumerate(trace)]
    return {
        "ttft_p90_s": {phase: float(np.percentile(times, 90)) for phase, times in waits.items()},
        "ttft_mean_s": {phase: float(np.mean(times)) for phase, times in waits.items()},
        "tpot_mean_s": float(np.mean(pace)),
        "tokens_per_s": sum(each.new_tokens for each in trace) / max(last.values()),
        "switches": len(manager.switches) - before,
    }
