"""Stage 1: the agent's own correct traces, greedy."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_infeco.sidequest import (
    ContextFull,
    CursorMap,
    KeepAll,
    SideQuestConfig,
    SideQuestSession,
    ToolFormat,
    run_many,
)

from .config import RecipeConfig
from .lines import add_line, whole_lines
from .tasks import AgentTask, draw_tasks

Messages = list[dict[str, Any]]


def collect(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tool_format: ToolFormat,
    config: RecipeConfig,
    path: Path,
) -> list[Messages]:
    """
    The first `config.traces` correct traces, in the order of the tasks. Each group of tasks is one line of `path`; a
    run that was stopped goes on behind the last whole line.

    Raises:
        ValueError: ten times as many tasks have not brought them.
    """
    done = whole_lines(path)
    traces = [trace for group in done for trace in group]
    bar = logging.tqdm(total=config.traces, initial=len(traces), desc="traces")
    while len(traces) < config.traces:
        if len(done) * config.at_once >= 10 * config.traces + 100:
            raise ValueError(
                f"{len(done) * config.at_once} tasks brought {len(traces)} correct traces of {config.traces}: the "
                "agent is not good enough to learn from itself. Take easier tasks, a better model, or fewer traces."
            )
        tasks = draw_tasks(config, config.at_once, 100_000 * config.seed + len(done), held_out=False)
        done.append(_correct(model, tokenizer, tool_format, config, tasks))
        add_line(path, done[-1])
        traces += done[-1]
        bar.update(len(done[-1]))
    bar.close()
    return traces[: config.traces]


def _correct(model, tokenizer, tool_format, config, tasks: list[AgentTask]) -> list[Messages]:
    if all(task.solution for task in tasks):
        wholes = [task.messages + task.solution for task in tasks]
        return [whole for whole in wholes if writes(model, tokenizer, tool_format, whole)]
    settings = SideQuestConfig(main_adapters=main_adapters(config), max_new_tokens=config.max_new_tokens)
    sessions = [
        SideQuestSession(model, tokenizer, task.tools, settings, policy=KeepAll(), tool_format=tool_format)
        for task in tasks
    ]
    results = run_many(sessions, [task.messages for task in tasks])
    return [
        result.messages
        for task, result in zip(tasks, results)
        if not isinstance(result, ContextFull) and result.answer and task.is_right(result.answer)
    ]


def main_adapters(config: RecipeConfig) -> tuple[str, ...]:
    """Adapters of the agent before it has learned anything."""
    return ("agent",) if config.agent_adapter else ()


def writes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tool_format: ToolFormat, messages: Messages
) -> bool:
    """Whether greedy decoding writes the assistant's messages of this conversation, token for token: one forward."""
    cursors = CursorMap.from_messages(tokenizer, messages, tool_format=tool_format)
    at = torch.tensor(written(cursors), device=model.device)
    ids = torch.tensor([cursors.ids], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=at - 1).logits
    return torch.equal(logits[0].argmax(-1), ids[0, at])


def written(cursors: CursorMap) -> list[int]:
    """Positions of the tokens that the assistant wrote, those that end its turns included."""
    return [position for begin, end in cursors.turns for position in range(begin, end + 1)]
