"""The invented shop, the training of its model, and what the bundled one does with and without an index."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from hf_infeco.training.testbed.catalog import card
from hf_infeco.training.testbed.catalog.catalogue import BOS, LAST_DAY, VOCAB_SIZE, Catalogue, encode_histories
from hf_infeco.training.testbed.catalog.evaluate import build_index, evaluate, fresh_items
from hf_infeco.training.testbed.catalog.train import Trainer, catalog_config, save

ROOT = Path(__file__).resolve().parents[2]
CATALOG = ROOT / "examples" / "models" / "catalog"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def catalogue():
    return Catalogue.read(CATALOG / "items.csv")


def histories(catalogue, users=300, day=None, seed=0):
    return catalogue.sample_histories(users, 13, torch.Generator().manual_seed(seed), day)


def test_the_bundled_catalogue_is_the_one_that_its_seed_invents(catalogue):
    seed = json.loads((CATALOG / "training.json").read_text())["seed"]
    invented = Catalogue.invent(seed)
    assert torch.equal(catalogue.codes, invented.codes) and catalogue.ids == invented.ids
    torch.testing.assert_close(catalogue.popularity, invented.popularity)
    torch.testing.assert_close(catalogue.released, invented.released)
    assert 0.03 < catalogue.is_fresh.float().mean() < 0.05


def test_nobody_buys_a_fresh_item_before_it_comes_nor_an_item_twice(catalogue):
    trained, last_day = histories(catalogue), histories(catalogue, day=LAST_DAY)
    assert not catalogue.is_fresh[trained].any() and catalogue.is_fresh[last_day].any()
    assert all(len(set(row)) == len(row) for row in last_day.tolist())


def test_equal_seeds_make_equal_users(catalogue):
    assert torch.equal(histories(catalogue, seed=3), histories(catalogue, seed=3))
    assert not torch.equal(histories(catalogue, seed=3), histories(catalogue, seed=4))


def test_histories_are_tokens_of_their_items(catalogue):
    bought = histories(catalogue, users=2)
    ids = encode_histories(catalogue, bought)
    assert ids.shape == (2, 1 + 4 * 13) and (ids[:, 0] == BOS).all() and ids.max() < VOCAB_SIZE
    index = build_index(catalogue)
    assert index.items(int(index.lookup(ids[:1, -4:]))) == [catalogue.ids[bought[0, -1]]]


def test_a_few_steps_of_training_lower_the_loss_and_can_be_saved(catalogue, tmp_path):
    torch.manual_seed(0)
    model = LlamaForCausalLM(catalog_config())
    first, trainer = Trainer(model, catalogue, seed=0, steps=1), Trainer(model, catalogue, seed=0, steps=12)
    first.run(progress=False)
    trainer.run(progress=False)
    assert trainer.taken == 12 and trainer.loss < first.loss
    save(model, catalogue, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters() == model.num_parameters() < 2e6
    assert torch.equal(Catalogue.read(tmp_path / "items.csv").codes, catalogue.codes)


def test_the_bundled_model_finds_more_in_its_catalogue_and_cold_items_among_the_fresh(catalogue):
    model = AutoModelForCausalLM.from_pretrained(CATALOG, dtype=torch.float32).eval()
    found = evaluate(model, catalogue, seed=2, users=200, progress=False)
    recall, cold = (
        {name: entry["rate"] for name, entry in found[of].items()} for of in ("recall_at_10", "cold_recall_at_10")
    )
    assert recall["constrained"] >= recall["unconstrained"]
    assert recall["constrained"] > 10 * found["random_recall_at_10"]
    assert cold["unconstrained"] == 0 and cold["fresh_only"] > 10 * found["random_recall_at_10_among_fresh"]


def test_the_fresh_items_are_a_subset_of_the_index(catalogue):
    names = fresh_items(catalogue)
    subset = build_index(catalogue).subset(names)
    assert subset.describe()["eligible_items"] == len(names) == int(catalogue.is_fresh.sum())


def test_the_bundled_card_says_what_was_measured(tmp_path):
    for name in ("config.json", "training.json", "evaluation.json"):
        (tmp_path / name).write_text((CATALOG / name).read_text())
    card.write_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == (CATALOG / "README.md").read_text()


def test_the_bundled_files_stay_under_five_megabytes():
    assert sum(path.stat().st_size for path in CATALOG.iterdir()) < 5e6


def test_the_example_recommends_items_only_and_fresh_ones_where_asked(catalogue, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["constrained_recommendation.py", "--users", "1"])
    runpy.run_path(str(ROOT / "examples" / "constrained_recommendation.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "in the catalogue: 10 of 10 answers are items" in printed
    fresh = [line.split()[1] for line in printed.split("fresh items only:")[1].splitlines() if line.strip()]
    assert len(fresh) == 10 and set(fresh) <= set(fresh_items(catalogue))
