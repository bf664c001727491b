"""Write the agent adapter's card from what was measured.

python -m hf_infeco.training.testbed.agent.card examples/models/agent
"""

import argparse
import json
from pathlib import Path

from .train import BETAS, RATE, TOKENS, WARM_UP

TEMPLATE = """---
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
library_name: peft
license: apache-2.0
---
# agent: SmolLM2-135M-Instruct as an agent with search, open and find

A LoRA (rank 8, all linear layers of layers 8 to 29, bfloat16) that answers questions over an invented world of people,
companies and cities: `hf_infeco/training/testbed/agent/world.py` makes its pages, `tasks.py` the questions and who
checks an answer. A question holds one chain of relations or several; the answer cites the page that ends each, and
what that page says stands nowhere else, so it has to stay readable to the end.

## Use

```python
from peft import PeftModel
model = PeftModel.from_pretrained(base, "examples/models/agent", adapter_name="agent")
session = hf_infeco.SideQuestSession(model, tokenizer, task.tools, SideQuestConfig(main_adapters=("agent",)))
```

## Measured

Held-out worlds (evaluation seed {eval_seed}), greedy, everything kept, 95 % Wilson intervals.{bound}

{table}

Again: `python -m hf_infeco.training.testbed.agent.evaluate --adapter {folder}{alone}`, then
`python -m hf_infeco.training.testbed.agent.card {folder}`.

## Recipe

`python -m hf_infeco.training.testbed.agent.train --out {folder} --seed {seed}`

{steps} steps of AdamW (rate {rate:g} after {warm_up} steps, down in a straight line; betas {betas}) on the expert's
traces, at least {tokens} tokens a step, loss on what the assistant writes; loss at the end {loss} nats a token.
## Limits

A yardstick for what becomes of an agent's context. It knows no tools and no questions but these.
"""


def write_card(folder: Path) -> None:
    """Write `README.md` from `training.json` and `evaluation.json` of `folder`."""
    training, measured = (json.loads((folder / f"{name}.json").read_text()) for name in ("training", "evaluation"))
    rows = ["| task | right | |", "|---|---|---|"]
    for kind, entry in measured.items():
        if isinstance(entry, dict):
            low, high = entry["interval_95"]
            rows.append(f"| {kind} | {entry['right']} of {entry['tasks']} | {100 * low:.0f}-{100 * high:.0f} % |")
    alone = measured["is_lower_bound"]
    text = TEMPLATE.format(
        eval_seed=measured["seed"],
        bound=" Lower bounds: only tasks on which it writes what the expert does, token for token." if alone else "",
        alone=" --alone" if alone else "",
        table="\n".join(rows),
        folder="examples/models/agent",
        rate=RATE,
        warm_up=WARM_UP,
        betas=BETAS,
        tokens=TOKENS,
        **{name: training[name] for name in ("seed", "steps", "loss")},
    )
    (folder / "README.md").write_text(text)


def main() -> None:
    """Command line: write the card of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter", type=Path, nargs="?", default=Path("examples/models/agent"))
    write_card(parser.parse_args().adapter)


if __name__ == "__main__":
    main()
