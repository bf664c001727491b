"""Write the catalog model's card from what was measured.

python -m hf_infeco.training.testbed.catalog.card examples/models/catalog
"""

import argparse
import json
from pathlib import Path

from transformers import AutoConfig

from .train import BETAS, EVENTS, RATE, USERS, WARM_UP, WEIGHT_DECAY

TEMPLATE = """---
library_name: transformers
license: apache-2.0
---
# catalog: a {parameters} M-parameter recommender that writes semantic ids

A plain `LlamaForCausalLM` ({shape})
that reads the items a user bought, four tokens each, and writes the next one. Users, items and their ids are invented
(`hf_infeco/training/testbed/catalog/catalogue.py`): {items:,} items in 256 categories, a taste of style and price,
popularity, and appeal that fades with age. {fresh_items} items are fresh: they came after the training data and were
never seen. `items.csv` is the catalogue, ready for `hf-infeco index build items.csv INDEX --vocab-size 1026 --id id`.

## Use

`python examples/constrained_recommendation.py`

## Measured

{users:,} users on the last day, {beams} beams each, {dtype} arithmetic on bfloat16 weights, 95 % Wilson intervals
(evaluation seed {eval_seed}). Recall@10 is the share of users whose next item is among their ten answers; cold counts
the users whose next item is fresh.

| | recall@10 | cold recall@10 |
|---|---|---|
| unconstrained beams | {recall_unconstrained} | {cold_unconstrained} |
| beams in the catalogue | {recall_constrained} | {cold_constrained} |
| beams among the fresh items (`subset`) | - | {cold_fresh_only} |
| ten random items | {random:.2f} % | {random_fresh:.2f} % of the fresh items |

Of the unconstrained answers, {invalid} were no item of the catalogue.

Why the fresh items are found: a fresh item shares its first two tokens, category and taste, with items that were
trained on, so the model tells which would suit. Its last two tokens are news to the model, which therefore never
writes them of itself, nor prefers them to a known item's; only the index restricted to fresh items leaves them.

Again: `python -m hf_infeco.training.testbed.catalog.evaluate {folder}` (writes `evaluation.json`), then
`python -m hf_infeco.training.testbed.catalog.card {folder}`.

## Recipe

`python -m hf_infeco.training.testbed.catalog.train --out {folder} --seed {seed}`

AdamW (rate {rate:g}, {warm_up} steps up, then down to a hundredth in a straight line; betas {betas}; weight decay
{weight_decay:g}), bf16 autocast, {steps:,} steps of {rows} new users with {events} items each, {minutes} minutes on
{device} shared with other work (torch {torch}); loss at the end {loss} nats a token. The seed fixes data and start;
another number of threads or torch version gives other, similar weights.

## Limits

A measuring device for constrained decoding: the shop's rules are simpler than people, and its recall says nothing of
other recommenders.
"""


def write_card(folder: Path) -> None:
    """Write `README.md` from `config.json`, `training.json` and `evaluation.json` of `folder`."""
    training, measured = (json.loads((folder / f"{name}.json").read_text()) for name in ("training", "evaluation"))
    config = AutoConfig.from_pretrained(folder)
    shape = (
        f"{config.num_hidden_layers} layers, {config.hidden_size} wide, {config.num_attention_heads} heads on "
        f"{config.num_key_value_heads} KV heads of {config.head_dim}"
    )
    rows = {f"recall_{name}": _percent(entry) for name, entry in measured["recall_at_10"].items()}
    rows |= {f"cold_{name}": _percent(entry) for name, entry in measured["cold_recall_at_10"].items()}
    text = TEMPLATE.format(
        parameters="1.3",
        shape=shape,
        items=measured["items"],
        fresh_items=measured["fresh_items"],
        users=measured["recall_at_10"]["constrained"]["total"],
        beams=10,
        dtype=measured["dtype"],
        eval_seed=measured["seed"],
        random=100 * measured["random_recall_at_10"],
        random_fresh=100 * measured["random_recall_at_10_among_fresh"],
        invalid=_percent(measured["invalid_unconstrained"]),
        folder="examples/models/catalog",
        rate=RATE,
        warm_up=WARM_UP,
        betas=BETAS,
        weight_decay=WEIGHT_DECAY,
        rows=USERS,
        events=EVENTS,
        **rows,
        **{name: training[name] for name in ("seed", "steps", "minutes", "device", "torch", "loss")},
    )
    (folder / "README.md").write_text(text)


def main() -> None:
    """Command line: write the card of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=Path("examples/models/catalog"))
    write_card(parser.parse_args().model)


def _percent(entry: dict) -> str:
    low, high = entry["interval_95"]
    return f"{100 * entry['rate']:.2f} % ({entry['count']}/{entry['total']}, {100 * low:.2f}-{100 * high:.2f})"


if __name__ == "__main__":
    main()
