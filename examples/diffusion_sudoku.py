"""
Fills in a 4x4 Sudoku by masked diffusion, one token per step beside ReMix, and draws every forward.

    python examples/diffusion_sudoku.py [--seed 9] [--delay 0.4]

Clues are bold, decided cells green. A yellow digit is not decided: the cell is mixed, and shows its neighbours what it
leans to. A dot is a plain mask. The model (examples/models/puzzle) was trained with this project's recipe.
"""

import argparse
import time
from pathlib import Path

import torch
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text
from transformers import AutoModelForMaskedLM

from hf_infeco import RemixConfig, remix
from hf_infeco.training.testbed.puzzle.puzzles import Puzzle, as_prompts, decode, draw, solves_sudoku

MODEL = Path(__file__).parent / "models" / "puzzle"
MASK, MIXED = 0, 1  # states of a cell that is not decided


def fill_in(model, puzzle: Puzzle, strategy: str) -> remix.RemixOutput:
    """The answer of one strategy, with every step."""
    config = RemixConfig(max_new_tokens=16, block_length=16, strategy=strategy)
    return remix.generate(model, as_prompts([puzzle]), config, return_states=True)


def draw_grid(puzzle: Puzzle, output: remix.RemixOutput, step: int) -> Panel:
    """The grid as a forward leaves it, with what the next one will see of its undecided cells."""
    is_last = step + 1 >= len(output.steps)
    step = min(step, len(output.steps) - 1)
    tokens, leaning = (decode(row[0].tolist()) for row in (output.steps[step].tokens, output.steps[step].leaning))
    states = output.steps[step + 1].states[0].tolist() if not is_last else [2] * 16
    text = Text()
    for cell in range(16):
        if puzzle.prompt[1 + cell] != ".":
            text.append(tokens[cell] if states[cell] > MIXED else puzzle.prompt[1 + cell], "bold")
        elif states[cell] == MASK:
            text.append("·", "dim")
        else:
            text.append(*((leaning[cell], "yellow") if states[cell] == MIXED else (tokens[cell], "green")))
        text.append("\n" if cell % 4 == 3 and cell < 15 else " ")
    return Panel(text, title=f"forward {step + 1}", width=15, border_style="green" if is_last else "dim")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=9)
    parser.add_argument("--delay", type=float, default=0.4, help="seconds that a forward is shown in a terminal")
    arguments = parser.parse_args()

    model = AutoModelForMaskedLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    (puzzle,) = draw("sudoku", 1, torch.Generator().manual_seed(arguments.seed), held_out=True)
    outputs = {strategy: fill_in(model, puzzle, strategy) for strategy in ("one", "remix")}

    console = Console()
    frames = [
        Columns([draw_grid(puzzle, output, step) for output in outputs.values()])
        for step in range(max(len(output.steps) for output in outputs.values()))
    ]
    console.print("one token per step beside ReMix\n")
    if console.is_terminal:
        with Live(console=console, refresh_per_second=20) as live:
            for frame in frames:
                live.update(frame)
                time.sleep(arguments.delay)
    else:
        for frame in frames:
            console.print(frame)
    for strategy, output in outputs.items():
        answer = decode(output.sequences[0, 17:].tolist())
        verdict = "solved" if solves_sudoku(puzzle.prompt, answer) else "not solved"
        console.print(f"{strategy}: {verdict} in {int(output.forwards)} forwards")


if __name__ == "__main__":
    main()
