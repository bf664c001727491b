"""What is measured: every policy on the same held-out tasks of the agent testbed."""

from collections.abc import Callable
from dataclasses import replace
from statistics import mean
from typing import Any

from hf_infeco.sidequest import H2O, RKV, KeepAll, OldestOutputs, Policy, SideQuest, SinkWindow, SnapKV
from hf_infeco.training.sidequest.evaluate import Agent, PolicyOf, by_labels, measure, summary
from hf_infeco.training.testbed.agent.tasks import EVALUATION_SEED, Task, make_task

from ..suite import Run

# Hops and parts. The adapters were trained on tasks like the first ones; nothing they saw was as long as the others.
KINDS = {"policies": [(4, 1), (6, 1), (2, 2), (3, 2)], "longer": [(8, 1), (4, 2)]}
BASELINES: dict[str, Callable[[int], Policy]] = {
    "oldest outputs": OldestOutputs,
    "window": SinkWindow,
    "H2O": H2O,
    "SnapKV": SnapKV,
    "R-KV": RKV,
}


def held_out(kinds: list[tuple[int, int]], count: int) -> list[Task]:
    """`count` tasks of worlds that nothing was trained or tuned on, the kinds in turn."""
    return [make_task(9 * EVALUATION_SEED + number, *kinds[number % len(kinds)]) for number in range(count)]


def measure_policies(run: Run, count: int, part: str) -> list[dict[str, Any]]:
    """Everything kept, perfect eviction, SideQuest, and SideQuest by the trigger alone, without its adapter."""
    agent: Agent = run.loaded
    format = agent.tool_format
    bare = replace(agent, settings=replace(agent.settings, side_adapters=agent.settings.main_adapters))
    ways: dict[str, tuple[Agent, PolicyOf]] = {
        "keep all": (agent, lambda task: KeepAll()),
        "perfect": (agent, by_labels(format)),
        "SideQuest": (agent, lambda task: SideQuest()),
        "prompt only": (bare, lambda task: SideQuest()),
    }
    return _measured(run, part, KINDS[part], count, ways)


def measure_baselines(run: Run, count: int) -> list[dict[str, Any]]:
    """Baselines whose budget is the mean peak of SideQuest on the same tasks, which is measured with them."""
    agent: Agent = run.loaded
    ways: dict[str, tuple[Agent, PolicyOf]] = {
        "keep all": (agent, lambda task: KeepAll()),
        "SideQuest": (agent, lambda task: SideQuest()),
    }
    tasks = KINDS["policies"]
    first = _entries(run, "baselines", tasks, count, ways)
    budget = int(mean(entry["peak_tokens"] for entry in first["SideQuest"]))
    ways |= {name: (agent, lambda task, kind=kind: kind(budget)) for name, kind in BASELINES.items()}
    return [{"budget": budget, **entry} for entry in _measured(run, "baselines", tasks, count, ways)]


def _measured(run: Run, part: str, kinds: list, count: int, ways: dict[str, tuple[Agent, PolicyOf]]) -> list[dict]:
    measured = _entries(run, part, kinds, count, ways)
    return [{"policy": name, **summary(entries, measured["keep all"])} for name, entries in measured.items()]


def _entries(run: Run, part: str, kinds: list, count: int, ways: dict[str, tuple[Agent, PolicyOf]]) -> dict[str, list]:
    tasks, progress = held_out(kinds, count), run.progress(part)
    return {
        name: progress.once(name, lambda agent=agent, policy=policy, name=name: measure(agent, tasks, policy, 4, name))
        for name, (agent, policy) in ways.items()
    }
