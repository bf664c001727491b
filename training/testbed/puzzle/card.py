"""Write the puzzle model's card from what was measured.

python -m hf_infeco.training.testbed.puzzle.card examples/models/puzzle
"""

import argparse
import json
from pathlib import Path

from transformers import AutoConfig

import hf_infeco.remix  # noqa: F401 - AutoConfig knows the model by it

from .puzzles import DIGITS, FEWEST_CLUES, HELD_OUT_ONE_IN, LARGEST_NUMBER, LARGEST_RESULT, MOST_CLUES
from .train import BETAS, DECAY, RATE, STAGES, WARM_UP, WEIGHT_DECAY, Stage

TEMPLATE = """---
library_name: transformers
license: apache-2.0
---
# puzzle: a {parameters} M-parameter masked diffusion model that fills in puzzles

A `hf_infeco.remix.MaskedDiffusionLM` ({shape}, attention in both directions) over {vocabulary} tokens: characters,
a mask and padding. It fills in three kinds of answers, which `hf_infeco/training/testbed/puzzle/puzzles.py` draws and
checks:

| | prompt | answer | |
|---|---|---|---|
| Sudoku | `S.4....1.3.......` | the 16 cells | 4 x 4, {fewest} to {most} clues, one solution |
| addition | `A123456789+987654321=` | `1111111110` | {digits} digits, many carries that run far |
| countdown | `C12070308` | `12-07=0505+03=08` | three numbers up to {number}, results up to {result} |

## Use

`python examples/diffusion_sudoku.py`, or

```python
from transformers import AutoModelForMaskedLM
from hf_infeco import RemixConfig, remix
model = AutoModelForMaskedLM.from_pretrained("examples/models/puzzle").float().eval()
output = remix.generate(model, prompts, RemixConfig(max_new_tokens=16, block_length=16))
```

## Measured

{puzzles:,} held-out puzzles of each kind, {dtype} arithmetic on bfloat16 weights, 95 % Wilson intervals (evaluation
seed {eval_seed}). Forwards are the mean over puzzles. `confidence` and `remix` with their defaults; the curves are in
docs/remix.md.

{table}

Again: `python -m hf_infeco.training.testbed.puzzle.evaluate {folder}` (writes `evaluation.json`), then
`python -m hf_infeco.training.testbed.puzzle.card {folder}`.

## Recipe

`python -m hf_infeco.training.testbed.puzzle.train --out {folder} --seed {seed}`

{steps:,} steps on {drawn:,} new puzzles, with a random number of each answer's tokens masked; the loss is a row's mean
over its masked tokens (LLaDA's). Two stages:

{stages}

AdamW (rate {rate:g}, {warm_up} steps up, level, down over the last {decay:.0%}; betas {betas}; weight decay
{weight_decay:g}), bf16 autocast, {minutes} minutes on {device} shared with other work (torch {torch}); loss at the end
{loss} nats a token. The seed fixes data and start; another number of threads or torch version gives other, similar
weights. A puzzle whose prompt's hash falls into one of {one_in} parts is held out.

Why soft embeddings in training: ReMix needs none with the models of its paper. One of this size that has seen only
masks and tokens takes a soft embedding for something else; docs/remix.md has what mixing then costs.

## Limits

A measuring device for decoding strategies. There are only 288 solved 4 x 4 grids, and training has seen all of them:
held out are the puzzles, not the grids.
"""


def write_card(folder: Path) -> None:
    """Write `README.md` from `config.json`, `training.json` and `evaluation.json` of `folder`."""
    training, measured = (json.loads((folder / f"{name}.json").read_text()) for name in ("training", "evaluation"))
    config = AutoConfig.from_pretrained(folder)
    kinds = [name for name, entry in measured.items() if isinstance(entry, dict)]
    strategies = list(measured[kinds[0]])
    rows = ["| | " + " | ".join(f"{name}: solved | forwards" for name in strategies) + " |"]
    rows.append("|---" * (1 + 2 * len(strategies)) + "|")
    for kind in kinds:
        cells = (f"{_percent(entry)} | {entry['forwards']:.2f}" for entry in measured[kind].values())
        rows.append(f"| {kind} | " + " | ".join(cells) + " |")
    text = TEMPLATE.format(
        parameters="2.0",
        shape=f"{config.num_hidden_layers} layers, {config.hidden_size} wide, {config.num_attention_heads} heads",
        vocabulary=config.vocab_size,
        fewest=FEWEST_CLUES,
        most=MOST_CLUES,
        digits=DIGITS,
        number=LARGEST_NUMBER,
        result=LARGEST_RESULT,
        puzzles=measured[kinds[0]][strategies[0]]["puzzles"],
        dtype=measured["dtype"],
        eval_seed=measured["seed"],
        table="\n".join(rows),
        folder="examples/models/puzzle",
        drawn=training["puzzles"],
        stages="\n".join(_stage_line(stage) for stage in STAGES),
        rate=RATE,
        warm_up=WARM_UP,
        decay=DECAY,
        betas=BETAS,
        weight_decay=WEIGHT_DECAY,
        one_in=HELD_OUT_ONE_IN,
        **{name: training[name] for name in ("seed", "steps", "minutes", "device", "torch", "loss")},
    )
    (folder / "README.md").write_text(text)


def main() -> None:
    """Command line: write the card of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=Path("examples/models/puzzle"))
    write_card(parser.parse_args().model)


def _stage_line(stage: Stage) -> str:
    rows = ", ".join(f"{count} of {kind}" for kind, count in stage.rows.items())
    seen = "half the rows show soft embeddings at their masks" if stage.mixed else "masks alone"
    return f"- {stage.steps:,} steps: {rows}; countdowns with `{stage.operations}`; {seen}."


def _percent(entry: dict) -> str:
    low, high = entry["interval_95"]
    return f"{100 * entry['rate']:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


if __name__ == "__main__":
    main()
