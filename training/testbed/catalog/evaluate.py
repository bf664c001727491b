"""Measure the catalog model: beams with and without an index, over the whole catalogue and over its fresh items.

python -m hf_infeco.training.testbed.catalog.evaluate examples/models/catalog
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel

import hf_infeco

from ..accuracy import Accuracy
from .catalogue import LAST_DAY, LEVELS, VOCAB_SIZE, Catalogue, encode_histories

BEAMS, AT_ONCE = 10, 100  # answers for each user, users in a batch
USERS = 4000  # of the report
HISTORY = 12  # items a user has bought before the one that is asked for


def build_index(catalogue: Catalogue) -> hf_infeco.StaticIndex:
    """The catalogue as an index whose items are called as in `catalogue.ids`."""
    return hf_infeco.StaticIndex.build(catalogue.tokens, vocab_size=VOCAB_SIZE, item_ids=catalogue.ids)


def fresh_items(catalogue: Catalogue) -> list[str]:
    """Ids of the items that came after the training data, for `StaticIndex.subset`."""
    return [name for name, is_fresh in zip(catalogue.ids, catalogue.is_fresh.tolist()) if is_fresh]


@torch.no_grad()
def free_beams(model: PreTrainedModel, ids: Tensor, index: hf_infeco.StaticIndex) -> Tensor:
    """Sequences by plain beam search, as ranks in the index, int64 `[users, beams]`; -1 for what is no item."""
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        max_new_tokens=LEVELS,
        do_sample=False,
        length_penalty=0.0,
    )
    return index.lookup(out[:, ids.shape[1] :]).view(len(ids), BEAMS)


def evaluate(model: PreTrainedModel, catalogue: Catalogue, seed: int, users: int, progress: bool = True) -> dict:
    """
    Of users on the last day, who buy fresh items too: recall@10 of the next item, ready for JSON.

    A user's answers are ten beams. Recall is the share of users whose next item is among them; `cold` counts only
    those whose next item is fresh, hence none that the model was trained on.
    """
    index = build_index(catalogue)
    fresh = index.subset(fresh_items(catalogue))
    histories = catalogue.sample_histories(users, HISTORY + 1, torch.Generator().manual_seed(seed), day=LAST_DAY)
    target = index.lookup(catalogue.tokens[histories[:, -1]])
    is_cold = catalogue.is_fresh[histories[:, -1]]
    found: dict[str, list[Tensor]] = {"unconstrained": [], "constrained": [], "fresh_only": []}
    for rows in tqdm(torch.arange(users).split(AT_ONCE), desc="catalog", disable=not progress):
        ids = encode_histories(catalogue, histories[rows, :-1]).to(model.device)
        found["unconstrained"].append(free_beams(model, ids, index))
        found["constrained"].append(hf_infeco.constrained_beam_search(model, ids, index, BEAMS).ranks)
        found["fresh_only"].append(hf_infeco.constrained_beam_search(model, ids, fresh, BEAMS).ranks)
    ranks = {name: torch.cat(parts).cpu() for name, parts in found.items()}
    hits = {name: (rows == target[:, None]).any(1) for name, rows in ranks.items()}
    invalid = Accuracy(int((ranks["unconstrained"] < 0).sum()), ranks["unconstrained"].numel())
    return {
        "seed": seed,
        "dtype": str(model.dtype).removeprefix("torch."),
        "items": len(catalogue.codes),
        "fresh_items": int(catalogue.is_fresh.sum()),
        "random_recall_at_10": round(BEAMS / len(catalogue.codes), 6),
        "random_recall_at_10_among_fresh": round(BEAMS / int(catalogue.is_fresh.sum()), 6),
        "invalid_unconstrained": _entry(invalid),
        "recall_at_10": {name: _entry(_share(hits[name])) for name in ("unconstrained", "constrained")},
        "cold_recall_at_10": {name: _entry(_share(hit[is_cold])) for name, hit in hits.items()},
    }


def _share(hits: Tensor) -> Accuracy:
    return Accuracy(int(hits.sum()), len(hits))


def _entry(share: Accuracy) -> dict:
    return {
        "count": share.correct,
        "total": share.total,
        "rate": round(share.rate, 5),
        "interval_95": [round(bound, 5) for bound in share.interval],
    }


def main() -> None:
    """Command line: evaluate a folder, print the report and write it to `evaluation.json` beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=Path("examples/models/catalog"))
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval().to(device)
    report = evaluate(model, Catalogue.read(options.model / "items.csv"), options.seed, options.users)
    text = json.dumps(report, indent=2) + "\n"
    (options.model / "evaluation.json").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
