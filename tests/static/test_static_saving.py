"""A saved index comes back as it was, mapped and not copied, and damage is found."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_infeco.static import StaticIndex
from hf_infeco.static.checking import find_faults

from .catalogues import VOCAB, random_sequences


@pytest.fixture
def index():
    sequences = random_sequences(0, variable=True)
    ids = [f"item {row}" for row in range(len(sequences))]
    return StaticIndex.build(sequences, vocab_size=VOCAB, item_ids=ids).without(["item 3"])


def test_an_index_survives_saving(index, tmp_path):
    index.save_pretrained(tmp_path)
    loaded = StaticIndex.from_pretrained(tmp_path)
    assert loaded.describe() == index.describe() and loaded.trie.widths == index.trie.widths
    assert all(loaded.items(rank) == index.items(rank) for rank in range(index.num_sequences))
    assert not find_faults(loaded, index.fingerprint)


def test_the_fingerprint_tells_sets_apart(index):
    assert index.fingerprint != index.without(["item 4"]).fingerprint
    assert index.fingerprint != index.extend([[9, 9]], item_ids=["new"]).fingerprint


def test_loading_maps_the_file_instead_of_reading_it(tmp_path):
    tokens = torch.randint(0, 1000, (200_000, 8), generator=torch.Generator().manual_seed(0))
    StaticIndex.build(tokens, vocab_size=1000).save_pretrained(tmp_path)
    loaded = StaticIndex.from_pretrained(tmp_path)
    with open("/proc/self/maps", encoding="utf-8") as file:
        mapped = [line for line in file if "static_index.safetensors" in line]
    assert mapped and loaded.lookup(tokens[:50]).ge(0).all()


@pytest.mark.parametrize(
    "name, fault",
    [("sequences", "code|sorted"), ("first_child", "first_child"), ("node_alive", "node_alive"), ("head", "head")],
)
def test_damage_is_found(index, tmp_path, name, fault):
    index.save_pretrained(tmp_path)
    path = tmp_path / "static_index.safetensors"
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    damaged = tensors[name].view(-1)
    damaged[5] = ~damaged[5] if damaged.dtype == torch.bool else damaged[5] + 1
    save_file(tensors, path)
    loaded = StaticIndex.from_pretrained(tmp_path)
    assert re.search(fault, " ".join(find_faults(loaded, loaded.fingerprint)))


def test_a_newer_format_is_refused(index, tmp_path):
    index.save_pretrained(tmp_path)
    path = tmp_path / "static_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(ValueError, match="format version 99"):
        StaticIndex.from_pretrained(tmp_path)


def test_a_folder_without_an_index_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No static_index\.json"):
        StaticIndex.from_pretrained(tmp_path)
