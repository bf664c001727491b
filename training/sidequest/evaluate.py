"""Stage 5: what the adapter does on held-out tasks, beside keeping everything and beside deleting by the labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_infeco.sidequest import (
    ContextFull,
    KeepAll,
    Labels,
    Policy,
    SideQuest,
    SideQuestConfig,
    SideQuestResult,
    SideQuestSession,
    ToolFormat,
    replay,
    run_many,
)

from ..testbed.accuracy import Accuracy
from .config import RecipeConfig
from .labels import expired, last_uses
from .lines import add_line, whole_lines
from .rollouts import main_adapters
from .samples import command
from .tasks import AgentTask, draw_tasks
from .train import SIDE

PolicyOf = Callable[[AgentTask], Policy]


@dataclass(frozen=True)
class Agent:
    """A model that answers tasks: what every session over it shares."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tool_format: ToolFormat
    settings: SideQuestConfig

    def session(self, task: AgentTask, policy: Policy) -> SideQuestSession:
        return SideQuestSession(
            self.model, self.tokenizer, task.tools, self.settings, policy=policy, tool_format=self.tool_format
        )


def session_settings(config: RecipeConfig) -> SideQuestConfig:
    """How sessions run with the trained adapter."""
    agent = main_adapters(config)
    return SideQuestConfig(
        interval=config.interval,
        main_adapters=(*agent, SIDE) if config.adapts_main else agent,
        side_adapters=(*agent, SIDE),
        max_new_tokens=config.max_new_tokens,
        max_side_tokens=config.max_new_tokens,
    )


def measure(
    agent: Agent, tasks: list[AgentTask], policy: PolicyOf, at_once: int, name: str, path: Path | None = None
) -> list[dict[str, Any]]:
    """
    An entry for each task under a policy, `as_entry`. Each batch is one line of `path`, if there is one; a run that
    was stopped goes on behind the last whole line.
    """
    entries = [entry for batch in (whole_lines(path) if path else []) for entry in batch]
    bar = logging.tqdm(total=len(tasks), initial=len(entries), desc=name)
    while batch := tasks[len(entries) : len(entries) + at_once]:
        results = _results(lambda task: agent.session(task, policy(task)), batch)
        new = [as_entry(task, result, agent.tool_format) for task, result in zip(batch, results)]
        if path:
            add_line(path, new)
        entries += new
        bar.update(len(new))
    bar.close()
    return entries


def _results(
    make: Callable[[AgentTask], SideQuestSession], batch: list[AgentTask]
) -> list[SideQuestResult | ContextFull]:
    """What sessions come to; tasks that do not go as foreseen are run in new ones, in one batch if they can."""
    results: list[Any] = [_foreseen(make(task), task) for task in batch]
    left = [at for at, result in enumerate(results) if result is None]
    sessions = [make(batch[at]) for at in left]
    if any(session.waits for session in sessions):
        ran = [_alone(session, batch[at]) for session, at in zip(sessions, left)]
    else:
        ran = run_many(sessions, [batch[at].messages for at in left]) if left else []
    for at, result in zip(left, ran):
        results[at] = result
    return results


def _foreseen(session: SideQuestSession, task: AgentTask) -> SideQuestResult | None:
    """The result if the main thread writes the task's solution, and each side thread what it is taught."""
    if task.solution is None:
        return None
    used = last_uses(task.messages + task.solution, session.tool_format)

    def says(turn: int, seen: Sequence[int]) -> str:
        gone = expired(used, turn)
        return command(list(seen), [cursor for cursor in seen if cursor in gone])

    return replay(session, task.messages, task.solution, says)


def _alone(session: SideQuestSession, task: AgentTask) -> SideQuestResult | ContextFull:
    try:
        return session.run(task.messages)
    except ContextFull as failure:
        return failure


def as_entry(task: AgentTask, result: SideQuestResult | ContextFull, tool_format: ToolFormat) -> dict[str, Any]:
    """
    Counters of one conversation, ready for JSON. A deletion is wrong if the task's solution still refers to the
    cursor; without a solution, if the conversation itself does.
    """
    failed = isinstance(result, ContextFull)
    record = result.conversation.record if failed else result.record
    messages = task.messages + task.solution if task.solution else ([] if failed else result.messages)
    used = last_uses(messages, tool_format)
    return {
        "kind": task.kind,
        "is_right": bool(not failed and result.answer and task.is_right(result.answer)),
        "turns": record.turns,
        "peak_tokens": record.peak_tokens,
        "kv_reads": record.kv_reads,
        "side_kv_reads": record.side_kv_reads,
        "written": record.main_tokens,
        "side_written": record.side_tokens,
        "commands": len(record.side_texts),
        "malformed": len(record.rejected),
        "deletions": len(record.deleted),
        "wrong": sum(cursor < len(used) and used[cursor] >= turn for turn, cursor in record.deleted),
    }


def summary(entries: list[dict[str, Any]], kept: list[dict[str, Any]]) -> dict[str, Any]:
    """
    Means and sums over tasks.

    Args:
        entries: of a policy.
        kept: of the same tasks with everything kept; ratios are means of each task's.
    """
    right = Accuracy(sum(entry["is_right"] for entry in entries), len(entries))
    both = list(zip(entries, kept))
    total = {name: sum(entry[name] for entry in entries) for name in ("commands", "malformed", "deletions", "wrong")}
    return {
        "tasks": right.total,
        "right": right.correct,
        "accuracy": right.rate,
        "interval_95": list(right.interval),
        "peak_tokens": mean(entry["peak_tokens"] for entry in entries),
        "peak_ratio": mean(entry["peak_tokens"] / other["peak_tokens"] for entry, other in both),
        "reads_ratio": mean(entry["kv_reads"] / other["kv_reads"] for entry, other in both),
        "reads_ratio_with_side": mean(
            (entry["kv_reads"] + entry["side_kv_reads"]) / other["kv_reads"] for entry, other in both
        ),
        "side_written": mean(entry["side_written"] for entry in entries),
        **total,
    }


def by_labels(tool_format: ToolFormat) -> PolicyOf:
    """Perfect eviction: somebody who knows the solution says what is stale."""

    def policy(task: AgentTask) -> Policy:
        if task.solution is None:
            return KeepAll()
        used = last_uses(task.messages + task.solution, tool_format)
        return Labels(lambda turn: expired(used, turn))

    return policy


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tool_format: ToolFormat,
    config: RecipeConfig,
    folder: Path,
) -> dict[str, Any]:
    """Every seed's held-out tasks with all kept, with perfect eviction, and with SideQuest; by policy, and by kind."""
    agent = Agent(model, tokenizer, tool_format, session_settings(config))
    tasks = [
        task
        for seed in range(config.evaluation_seeds)
        for task in draw_tasks(config, config.evaluation_tasks, config.seed + seed, held_out=True)
    ]
    policies: dict[str, PolicyOf] = {
        "keep_all": lambda task: KeepAll(),
        "perfect": by_labels(tool_format),
        "sidequest": lambda task: SideQuest(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    measured = {
        name: measure(agent, tasks, policy, config.at_once, name, folder / f"{name}.jsonl")
        for name, policy in policies.items()
    }
    kept = measured["keep_all"]
    report: dict[str, Any] = {name: summary(entries, kept) for name, entries in measured.items()}
    for name, entries in measured.items():
        kinds = sorted({entry["kind"] for entry in entries})
        report[name]["kinds"] = {
            kind: summary(*map(list, zip(*((e, k) for e, k in zip(entries, kept) if e["kind"] == kind))))
            for kind in kinds
        }
    return report


def plot(report: dict[str, Any], path: Path) -> None:
    """Peak tokens over those of keeping everything, and accuracy, by kind of task; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    kinds = list(report["keep_all"]["kinds"])
    width = 0.8 / len(report)
    for number, (name, entry) in enumerate(report.items()):
        at = [place + number * width for place in range(len(kinds))]
        left.bar(at, [entry["kinds"][kind]["peak_ratio"] for kind in kinds], width, label=name)
        right.bar(at, [entry["kinds"][kind]["accuracy"] for kind in kinds], width, label=name)
    for axes, label in ((left, "peak tokens / keep all"), (right, "accuracy")):
        axes.set_xticks([place + 0.4 - width / 2 for place in range(len(kinds))], kinds, rotation=30)
        axes.set_ylabel(label)
    left.legend()
    figure.savefig(path)
