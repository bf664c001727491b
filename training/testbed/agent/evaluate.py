"""Measure the agent on held-out tasks, greedy, with everything kept.

python -m hf_infeco.training.testbed.agent.evaluate --model FOLDER_OR_NAME --adapter examples/models/agent
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_infeco.sidequest import KeepAll, SideQuestConfig, SideQuestSession, ToolFormat

from ...sidequest.rollouts import writes
from ..accuracy import Accuracy
from .tasks import EVALUATION_SEED, Task, make_task
from .train import BASE, load_base

KINDS = [(2, 1), (3, 1), (4, 1), (6, 1), (8, 1), (2, 2), (4, 2), (2, 3)]  # hops and parts
TASKS = 40  # of each kind


def held_out(hops: int, parts: int, count: int, seed: int) -> list[Task]:
    """So many tasks of a kind, of worlds that training never sees."""
    return [make_task(EVALUATION_SEED * (2 + seed) + number, hops, parts) for number in range(count)]


def solves(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, alone: bool = False) -> bool:
    """
    Whether the greedy agent answers a task rightly. One forward tells whether it would write the expert's messages;
    only if not, it is run.

    Args:
        alone: take it for wrong where it does not write what the expert does: a lower bound, much sooner.
    """
    if writes(model, tokenizer, ToolFormat(), task.messages + task.solution):
        return True
    if alone:
        return False
    config = SideQuestConfig(max_new_tokens=256, max_turns=40)
    result = SideQuestSession(model, tokenizer, task.tools, config, policy=KeepAll()).run(task.messages)
    return result.answer is not None and task.is_right(result.answer)


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, seed: int, alone: bool
) -> dict[str, Any]:
    """Accuracy on every kind of task."""
    report: dict[str, Any] = {"seed": seed, "is_lower_bound": alone}
    for hops, parts in logging.tqdm(KINDS, desc="kinds"):
        tasks = held_out(hops, parts, count, seed)
        right = Accuracy(sum(solves(model, tokenizer, task, alone) for task in tasks), count)
        logging.get_logger(__name__).info(f"{tasks[0].kind}: {right}")
        report[tasks[0].kind] = {
            "right": right.correct,
            "tasks": right.total,
            "interval_95": [round(bound, 4) for bound in right.interval],
        }
    return report


def main() -> None:
    """Command line: print the report and write it to `evaluation.json` beside the adapter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=BASE, help="as for train")
    parser.add_argument("--adapter", type=Path, default=Path("examples/models/agent"))
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="count only what the expert would have written")
    options = parser.parse_args()
    base, tokenizer = load_base(options.model)
    model = PeftModel.from_pretrained(base, options.adapter).eval()
    with torch.no_grad():
        report = evaluate(model, tokenizer, options.tasks, options.seed, options.alone)
    text = json.dumps(report, indent=2) + "\n"
    (options.adapter / "evaluation.json").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
