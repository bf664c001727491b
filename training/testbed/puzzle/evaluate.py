"""Measure the puzzle model on held-out puzzles: how many it solves, and in how many forwards.

python -m hf_infeco.training.testbed.puzzle.evaluate examples/models/puzzle
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForMaskedLM, PreTrainedModel

from hf_infeco import RemixConfig, remix

from ..accuracy import Accuracy
from .puzzles import TASKS, Puzzle, as_prompts, decode, draw

PUZZLES, AT_ONCE = 500, 250  # of each kind in the report; in a batch
STRATEGIES: dict[str, dict[str, Any]] = {
    "one": {"strategy": "one"},
    "confidence": {"strategy": "confidence"},
    "remix": {"strategy": "remix"},
}


def held_out(task: str, count: int = PUZZLES, seed: int = 1, **how: Any) -> list[Puzzle]:
    """So many different puzzles that training never draws; `how` goes to the function that draws one."""
    return draw(task, count, torch.Generator().manual_seed(seed), held_out=True, **how)


def load_model(folder: Path, device: str = "cpu") -> PreTrainedModel:
    """The model in float32."""
    return AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)


def solve(model: PreTrainedModel, task: str, puzzles: list[Puzzle], **settings: Any) -> tuple[Tensor, Tensor]:
    """
    Which puzzles are solved, bool `[puzzles]`, and the forwards that each took, int64 `[puzzles]`.

    Args:
        settings: of `RemixConfig`; the block is the whole answer unless they say otherwise.
    """
    kind = TASKS[task]
    config = RemixConfig(**{"max_new_tokens": kind.answer_length, "block_length": kind.answer_length, **settings})
    is_solved, forwards = [], []
    for at in range(0, len(puzzles), AT_ONCE):
        batch = puzzles[at : at + AT_ONCE]
        output = remix.generate(model, as_prompts(batch).to(model.device), config)
        answers = [decode(row) for row in output.sequences[:, kind.prompt_length :].tolist()]
        is_solved += [kind.solves(puzzle.prompt, answer) for puzzle, answer in zip(batch, answers)]
        forwards.append(output.forwards.cpu())
    return torch.tensor(is_solved), torch.cat(forwards)


def as_entry(is_solved: Tensor, forwards: Tensor) -> dict[str, Any]:
    """What `solve` found, ready for JSON."""
    share = Accuracy(int(is_solved.sum()), len(is_solved))
    return {
        "solved": share.correct,
        "puzzles": share.total,
        "rate": round(share.rate, 5),
        "interval_95": [round(bound, 5) for bound in share.interval],
        "forwards": round(float(forwards.double().mean()), 3),
    }


def evaluate(model: PreTrainedModel, seed: int, count: int, progress: bool = True) -> dict[str, Any]:
    """Every kind of puzzle with one token per step, by confidence, and by ReMix with its defaults."""
    report: dict[str, Any] = {"seed": seed, "dtype": str(model.dtype).removeprefix("torch.")}
    for task in tqdm(TASKS, desc="puzzles", disable=not progress):
        puzzles = held_out(task, count, seed)
        report[task] = {name: as_entry(*solve(model, task, puzzles, **how)) for name, how in STRATEGIES.items()}
    return report


def main() -> None:
    """Command line: evaluate a folder, print the report and write it to `evaluation.json` beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=Path("examples/models/puzzle"))
    parser.add_argument("--puzzles", type=int, default=PUZZLES)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    model = load_model(options.model, "cuda" if torch.cuda.is_available() else "cpu")
    text = json.dumps(evaluate(model, options.seed, options.puzzles), indent=2) + "\n"
    (options.model / "evaluation.json").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
