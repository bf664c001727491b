"""
Recommends items to users of an invented shop, by beams that nothing holds, in the catalogue, and among fresh items.

    python examples/constrained_recommendation.py [--users 3]

The model (examples/models/catalog) writes an item as four tokens, after the items that a user bought. It was trained
before the shop's fresh items came. The catalogue is a CSV file beside it.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import hf_infeco
from hf_infeco.training.testbed.catalog.catalogue import LAST_DAY, VOCAB_SIZE, Catalogue, encode_histories

MODEL = Path(__file__).parent / "models" / "catalog"
ANSWERS = 10


def recommend(model, history: torch.Tensor, index: hf_infeco.StaticIndex) -> list[tuple[str, float]]:
    """Ten items for one user's history `[1, T]`, with their log-probabilities, best first."""
    return hf_infeco.constrained_beam_search(model, history, index, num_beams=ANSWERS).items[0][:ANSWERS]


def recommend_freely(model, history: torch.Tensor, index: hf_infeco.StaticIndex) -> list[str]:
    """Ten answers of plain beam search; those that no item has are called by their tokens."""
    beams = dict(num_beams=ANSWERS, num_return_sequences=ANSWERS, max_new_tokens=index.length, do_sample=False)
    out = model.generate(history, attention_mask=torch.ones_like(history), length_penalty=0.0, **beams)
    tokens = out[:, history.shape[1] :]
    ranks = index.lookup(tokens).tolist()
    return [
        index.items(rank)[0] if rank >= 0 else f"no item: tokens {row}"
        for rank, row in zip(ranks, tokens.tolist(), strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=3)
    arguments = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    catalogue = Catalogue.read(MODEL / "items.csv")
    index = hf_infeco.StaticIndex.build(catalogue.tokens, vocab_size=VOCAB_SIZE, item_ids=catalogue.ids)
    is_fresh = dict(zip(catalogue.ids, catalogue.is_fresh.tolist(), strict=True))
    fresh = index.subset([name for name, new in is_fresh.items() if new])
    print(f"{index}\n{sum(is_fresh.values())} items are fresh: the model has never seen one of them\n")

    histories = catalogue.sample_histories(arguments.users, 12, torch.Generator().manual_seed(7), day=LAST_DAY)
    for number, ids in enumerate(encode_histories(catalogue, histories)):
        history = ids[None]
        bought = [catalogue.ids[item] for item in histories[number].tolist()]
        free = recommend_freely(model, history, index)
        held = recommend(model, history, index)
        print(f"user {number} bought {', '.join(bought[-3:])}")
        invalid = sum(answer.startswith("no item") for answer in free)
        print(f"  unconstrained: {ANSWERS - invalid} of {ANSWERS} answers are items, best {free[0]}")
        num_fresh = sum(is_fresh[name] for name, _ in held)
        print(f"  in the catalogue: {len(held)} of {ANSWERS} answers are items, {num_fresh} fresh, best {held[0][0]}")
        print("  fresh items only:")
        for name, score in recommend(model, history, fresh):
            print(f"    {score:7.2f}  {name}")


if __name__ == "__main__":
    main()
