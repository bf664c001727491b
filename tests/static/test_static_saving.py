"""A saved index comes back as it was, mapped and not copied, never mixed with another one; damage is found."""

import json
import re
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_infeco.static import StaticIndex, StaticLogitsProcessor
from hf_infeco.static.checking import find_faults

from .catalogues import VOCAB, random_sequences

TENSORS, COPY = "static_index.safetensors", "static_index.json"


@pytest.fixture
def index():
    sequences = random_sequences(0, variable=True)
    ids = [f"item {row}" for row in range(len(sequences))]
    return StaticIndex.build(sequences, vocab_size=VOCAB, item_ids=ids).without(["item 3"])


def rewrite(folder, change_tensors=lambda tensors: None, **change_header):
    """The tensors' file with other content and no word to the JSON file, which goes."""
    path = folder / TENSORS
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["static_index"]) | change_header
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    change_tensors(tensors)
    save_file(tensors, path, metadata={"static_index": json.dumps(header)})
    (folder / COPY).unlink()


def test_an_index_survives_saving(index, tmp_path):
    index.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [COPY, TENSORS]
    assert (tmp_path / TENSORS).stat().st_mode == (tmp_path / COPY).stat().st_mode, "others may read both"
    loaded = StaticIndex.from_pretrained(tmp_path)
    assert loaded.describe() == index.describe() and loaded.trie.widths == index.trie.widths
    assert all(loaded.items(rank) == index.items(rank) for rank in range(index.num_sequences))
    assert not find_faults(loaded, index.fingerprint)
    mask = np.arange(index.num_items) % 2 == 0
    assert loaded.subset(mask).fingerprint == index.subset(mask).fingerprint


def test_the_json_file_is_a_copy_that_is_not_needed(index, tmp_path):
    index.save_pretrained(tmp_path)
    assert json.loads((tmp_path / COPY).read_text())["fingerprint"] == index.fingerprint
    (tmp_path / COPY).unlink()
    assert StaticIndex.from_pretrained(tmp_path).fingerprint == index.fingerprint


def test_files_of_two_indexes_are_refused(tmp_path):
    StaticIndex.build([[1, 2, 3]], vocab_size=VOCAB).save_pretrained(tmp_path / "narrow")
    StaticIndex.build(random_sequences(0), vocab_size=VOCAB).save_pretrained(tmp_path / "wide")
    for name in (COPY, TENSORS):
        shutil.copytree(tmp_path / "wide", tmp_path / name)
        shutil.copy(tmp_path / "narrow" / name, tmp_path / name / name)
        with pytest.raises(ValueError, match="does not describe the index in"):
            StaticIndex.from_pretrained(tmp_path / name)


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"format_version": 2'])
def test_a_json_file_that_was_cut_off_is_named(index, tmp_path, content):
    index.save_pretrained(tmp_path)
    (tmp_path / COPY).write_text(content)
    with pytest.raises(ValueError, match=r"static_index\.json does not describe"):
        StaticIndex.from_pretrained(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_named(index, tmp_path, share):
    index.save_pretrained(tmp_path)
    whole = (tmp_path / TENSORS).read_bytes()
    (tmp_path / TENSORS).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"static_index\.safetensors is cut off"):
        StaticIndex.from_pretrained(tmp_path)


def test_readers_find_one_index_or_the_other_while_it_is_replaced(tmp_path):
    wide = StaticIndex.build(np.random.default_rng(0).integers(0, 999, (20_000, 3)), vocab_size=1000)
    narrow = StaticIndex.build([[1, 2, 3]], vocab_size=1000)
    wide.save_pretrained(tmp_path)

    def write():
        for each in 20 * [narrow, wide]:
            each.save_pretrained(tmp_path)
            time.sleep(0.01)  # two threads of one process wait for one another, unlike two processes

    writer = threading.Thread(target=write)
    writer.start()
    found = set()
    while writer.is_alive():
        loaded = StaticIndex.from_pretrained(tmp_path)
        found.add(loaded.fingerprint)
        tokens = torch.cat([torch.zeros(20, 1, dtype=torch.int64), wide.sequences(range(20))[:, :1]], 1)
        tokens[0, 1] = 1
        StaticLogitsProcessor(loaded, prompt_length=1)(tokens, torch.randn(20, 1000))
    assert found <= {wide.fingerprint, narrow.fingerprint} and found


def test_an_index_may_replace_the_files_that_it_is_mapped_from(index, tmp_path):
    index.save_pretrained(tmp_path)
    loaded = StaticIndex.from_pretrained(tmp_path)
    fewer = loaded.without(["item 4"])
    fewer.save_pretrained(tmp_path)
    assert not find_faults(loaded, index.fingerprint) and not find_faults(fewer, fewer.fingerprint)
    assert StaticIndex.from_pretrained(tmp_path).fingerprint == fewer.fingerprint != loaded.fingerprint


def test_a_save_that_fails_leaves_the_old_index(index, tmp_path, monkeypatch):
    index.save_pretrained(tmp_path)

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("hf_infeco.static.saving.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        index.without(["item 4"]).save_pretrained(tmp_path)
    assert StaticIndex.from_pretrained(tmp_path).fingerprint == index.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == [COPY, TENSORS]


def test_loading_maps_the_file_instead_of_reading_it(tmp_path):
    tokens = torch.randint(0, 1000, (200_000, 8), generator=torch.Generator().manual_seed(0))
    StaticIndex.build(tokens, vocab_size=1000).save_pretrained(tmp_path)
    loaded = StaticIndex.from_pretrained(tmp_path)
    with open("/proc/self/maps", encoding="utf-8") as file:
        mapped = [line for line in file if TENSORS in line]
    assert mapped and loaded.lookup(tokens[:50]).ge(0).all()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("sequences", "code|sorted|fingerprint"),
        ("first_child", "first_child"),
        ("code", "code"),
        ("node_alive", "node_alive"),
        ("wide_bits", "wide_bits"),
        ("item_text", "fingerprint"),
        ("item_values", "fingerprint|ascend"),
        ("item_begin", "fingerprint|no item"),
        ("item_row", "order"),
        ("eligible", "fingerprint"),
    ],
)
def test_damage_is_found(tmp_path, name, fault):
    tokens = np.random.default_rng(0).integers(0, 200, (5000, 3))
    index = StaticIndex.build(tokens, vocab_size=VOCAB * 2, item_ids=[f"item {row}" for row in range(5000)])
    index.without(["item 3"]).save_pretrained(tmp_path)

    def damage(tensors):
        part = tensors[name].view(-1)
        part[5] = ~part[5] if part.dtype == torch.bool else part[5] + 1

    rewrite(tmp_path, damage)
    loaded = StaticIndex.from_pretrained(tmp_path)
    assert re.search(fault, " ".join(find_faults(loaded, loaded.fingerprint)))


def test_two_items_that_swapped_their_ids_are_found(tmp_path):
    index = StaticIndex.build([[3, 4], [5, 6]], vocab_size=VOCAB, item_ids=["x", "q"])
    swapped = StaticIndex.build([[3, 4], [5, 6]], vocab_size=VOCAB, item_ids=["q", "x"])
    assert index.fingerprint != swapped.fingerprint
    index.save_pretrained(tmp_path)
    path = tmp_path / TENSORS
    path.write_bytes(path.read_bytes().replace(b"xq", b"qx"))
    loaded = StaticIndex.from_pretrained(tmp_path)
    assert loaded.items(0) == ["q"] and find_faults(loaded, loaded.fingerprint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("code"), "code is missing"),
        (lambda tensors: tensors.update(code=tensors["code"].float()), "code is missing, or no array as it must be"),
        (lambda tensors: tensors.update(first_sequence=tensors["first_sequence"][:-1]), "first_sequence has"),
        (lambda tensors: tensors["alphabet"].add_(VOCAB), "outside"),
        (lambda tensors: tensors.update(alphabet=tensors["alphabet"].flip(0)), "not in order"),
        (lambda tensors: tensors["alphabet_start"].zero_(), "alphabet_start"),
        (lambda tensors: tensors["first_child"].fill_(2**30), "first_child"),
        (lambda tensors: tensors.update(item_values=tensors["item_values"][:-1]), "item_values"),
        (lambda tensors: tensors["item_begin"].zero_(), "item_begin"),
        (lambda tensors: tensors.pop("item_row"), "item"),
        (lambda tensors: tensors.update(eligible=tensors["eligible"][:-1]), "eligible"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(index, tmp_path, change, message):
    index.save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=f"is damaged.*{message}"):
        StaticIndex.from_pretrained(tmp_path)


@pytest.mark.parametrize("widths", [[1], [9999] * 4, [-1] * 4])
def test_widths_that_are_none_of_the_levels_are_refused(index, tmp_path, widths):
    index.save_pretrained(tmp_path)
    rewrite(tmp_path, widths=widths)
    with pytest.raises(ValueError, match="widths="):
        StaticIndex.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("version", "message"), [(99, "format version 99.*upgrade"), (1, "older hf_infeco.*build the index again")]
)
def test_other_formats_are_refused(index, tmp_path, version, message):
    index.save_pretrained(tmp_path)
    rewrite(tmp_path, format_version=version)
    with pytest.raises(ValueError, match=message):
        StaticIndex.from_pretrained(tmp_path)


def test_a_folder_without_an_index_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"No static_index\.safetensors"):
        StaticIndex.from_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    for missing in (tmp_path / "none", "none", "some/where/else"):
        with pytest.raises(FileNotFoundError, match=rf"'{missing}' is no folder here"):
            StaticIndex.from_pretrained(missing)


def test_the_size_of_the_vocabulary_may_be_a_number_of_numpy(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 50, (100, 3))
    StaticIndex.build(tokens, vocab_size=tokens.max() + 1).save_pretrained(tmp_path)
    assert StaticIndex.from_pretrained(tmp_path).vocab_size == 50


def test_the_fingerprint_tells_sets_apart(index):
    assert index.fingerprint != index.without(["item 4"]).fingerprint
    assert index.fingerprint != index.extend([[9, 9]], item_ids=["new"]).fingerprint


@pytest.mark.parametrize("ids", [None, "text", "integers"])
def test_equal_sets_have_equal_fingerprints_however_they_came_about(ids):
    """Left out with their tokens, their levels and the longest; in another order, and of several items a sequence."""
    sequences = [[5, 6], [5, 7], [9], [5, 6], [8, 8, 8, 90], [9, 9]]
    names = None if ids is None else [f"item {row}" if ids == "text" else 10 * row for row in range(6)]

    def build(rows):
        chosen = None if names is None else [names[row] for row in rows]
        return StaticIndex.build([sequences[row] for row in rows], vocab_size=VOCAB, item_ids=chosen)

    whole = build(range(6))
    assert whole.without([]).fingerprint == whole.fingerprint
    assert whole.subset(ranks=[True] * whole.num_sequences).fingerprint == whole.fingerprint
    assert build([5, 3, 2, 4, 1, 0]).fingerprint == whole.fingerprint
    less = whole.without(ranks=whole.lookup([[8, 8, 8, 90]]))
    assert less.fingerprint == build([0, 1, 2, 3, 5]).fingerprint != whole.fingerprint
    if names is not None:
        assert build(range(5)).extend([[9, 9]], item_ids=[names[5]]).fingerprint == whole.fingerprint
