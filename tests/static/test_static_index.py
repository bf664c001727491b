"""StaticIndex holds exactly the sequences it was given, in whatever form and order, and derives others from itself."""

import numpy as np
import pytest
import torch

from hf_infeco.static import StaticIndex
from hf_infeco.static.checking import find_faults

from .catalogues import VOCAB, random_index, random_sequences

SHAPES = [dict(), dict(variable=True, length=6), dict(count=1), dict(count=3000, length=2)]


def members(index: StaticIndex) -> list[list[int]]:
    rows = index.sequences(torch.arange(index.num_sequences)).tolist()
    return [[token for token in row if token >= 0] for row in rows]


def eligible_members(index: StaticIndex) -> list[list[int]]:
    """By lookup, hence through the trie and not from the array."""
    sequences = index.sequences(torch.arange(index.num_sequences))
    found = index.lookup(sequences) == torch.arange(index.num_sequences)
    return [[token for token in row if token >= 0] for row in sequences[found].tolist()]


def distinct(sequences) -> list[list[int]]:
    return [list(sequence) for sequence in sorted({tuple(sequence) for sequence in sequences})]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_an_index_holds_each_sequence_once_in_sorted_order(shape, seed):
    index, sequences = random_index(seed, **shape)
    assert members(index) == distinct(sequences)
    assert index.lookup(index.sequences(torch.arange(index.num_sequences))).tolist() == list(
        range(len(members(index)))
    )
    assert not find_faults(index, index.fingerprint)


@pytest.mark.parametrize("form", ["int64", "uint8", "torch", "chunks of arrays", "ragged", "chunks of lists"])
def test_every_form_of_input_gives_the_same_index(form):
    sequences = random_sequences(0)
    forms = {
        "int64": np.array(sequences),
        "uint8": np.array(sequences, dtype=np.uint8),
        "torch": torch.tensor(sequences),
        "chunks of arrays": (np.array(sequences[at : at + 50]) for at in range(0, len(sequences), 50)),
        "ragged": [np.array(sequence) for sequence in sequences],
        "chunks of lists": iter([sequences[:7], sequences[7:8], sequences[8:]]),
    }
    index = StaticIndex.build(forms[form], vocab_size=VOCAB)
    assert index.fingerprint == StaticIndex.build(sequences, vocab_size=VOCAB).fingerprint


def test_chunks_of_several_lengths_fit_together():
    chunks = [[[5, 6, 7]], [[5]], [[5, 6, 7, 8, 9], [6]]]
    index = StaticIndex.build(iter(chunks), vocab_size=VOCAB)
    assert members(index) == [[5], [5, 6, 7], [5, 6, 7, 8, 9], [6]]


def test_levels_of_a_wide_vocabulary_get_compact_codes():
    """As real checkpoints have it: the same few tokens at each level, far up in the vocabulary."""
    sequences = np.random.default_rng(0).integers(0, 50, (500, 3)) + 150_000 + 50 * np.arange(3)
    index = StaticIndex.build(sequences, vocab_size=151_936)
    assert index.trie.code.dtype == torch.int16 and index.trie.code.max() < 50
    assert members(index) == distinct(sequences.tolist())


@pytest.mark.parametrize(
    ("sequences", "error", "message"),
    [
        ([[3, VOCAB]], ValueError, rf"Sequence 0 has token {VOCAB} at position 1.*\[0, {VOCAB}\)"),
        (iter([[[3, 4]], [[3, 4], [-1, 4]]]), ValueError, "Sequence 2 has token -1 at position 0"),
        ([], ValueError, "no sequences"),
        (np.zeros((0, 4), dtype=int), ValueError, "no sequences"),
        ([[3], [], [4]], ValueError, "Sequence 1 is empty"),
        (np.zeros((3, 0), dtype=int), ValueError, "Sequence 0 is empty"),
        (np.zeros((3, 2)), TypeError, "float64; tokens are integers"),
        ([[3.0, 4.0]], TypeError, "tokens are integers"),
        (np.zeros(4, dtype=int), ValueError, "must be 2-D"),
        ([3, 4, 5], ValueError, "no sequence of tokens"),
    ],
)
def test_what_is_no_set_of_sequences_is_refused_by_name(sequences, error, message):
    with pytest.raises(error, match=message):
        StaticIndex.build(sequences, vocab_size=VOCAB)


@pytest.mark.parametrize("kind", ["text", "integers", "array"])
def test_items_that_share_a_sequence_keep_their_own_ids(kind):
    sequences = random_sequences(1)
    ids = {
        "text": [f"ä{row}" for row in range(len(sequences))],
        "integers": [7 * row for row in range(len(sequences))],
    }
    ids["array"] = np.array(ids["integers"])
    given = list(ids[kind])
    index = StaticIndex.build(sequences, vocab_size=VOCAB, item_ids=ids[kind])
    assert index.num_items == len(sequences) > index.num_sequences
    for rank, member in enumerate(members(index)):
        assert index.items(rank) == [
            item for item, sequence in zip(given, sequences, strict=True) if sequence == member
        ]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [(["a"], ValueError, "1 item_ids for 2 sequences"), ([1.5, 2.5], TypeError, "all be integers or all be strings")],
)
def test_ids_that_do_not_match_are_refused(ids, error, message):
    with pytest.raises(error, match=message):
        StaticIndex.build([[3], [4]], vocab_size=VOCAB, item_ids=ids)
    with pytest.raises(TypeError, match="all be integers or all be strings"):
        StaticIndex.build([[3], [4]], vocab_size=VOCAB, item_ids=["a", 4])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_a_subset_holds_what_the_mask_says(shape, share):
    index, sequences = random_index(2, **shape)
    mask = np.random.default_rng(0).random(index.num_sequences) < share
    mask[-1] = True
    subset = index.subset(ranks=mask)
    assert eligible_members(subset) == [member for member, kept in zip(members(index), mask, strict=True) if kept]
    assert not find_faults(subset, subset.fingerprint)
    assert eligible_members(index) == distinct(sequences), "the index it came from is as it was"


def test_a_sequence_stays_while_one_of_its_items_does():
    index = StaticIndex.build([[3, 4], [3, 4], [5, 6]], vocab_size=VOCAB, item_ids=["a", "b", "c"])
    without = index.without(["a"])
    assert without.items(0) == ["b"] and eligible_members(without) == [[3, 4], [5, 6]]
    gone = without.without(["b"])
    assert gone.items(0) == [] and eligible_members(gone) == [[5, 6]]
    assert eligible_members(index.subset(["a"])) == [[3, 4]]
    with pytest.raises(ValueError, match="No item is left"):
        gone.without(["c"])
    with pytest.raises(ValueError, match="'z'"):
        index.without(["z"])


def test_without_ids_items_are_ranks():
    index = StaticIndex.build([[5, 6], [3, 4]], vocab_size=VOCAB)
    assert eligible_members(index.without([0])) == [[5, 6]]
    with pytest.raises(ValueError, match="Ranks run from 2 to 2"):
        index.without([2])
    with pytest.raises(ValueError, match="shape"):
        index.subset(ranks=np.array([True]))
    with pytest.raises(ValueError, match="without item_ids"):
        index.subset(np.array([True, False]))


@pytest.mark.parametrize("variable", [False, True])
def test_extending_is_building_from_both(variable):
    first, second = random_sequences(3, variable=variable), random_sequences(4, length=6, variable=variable)
    ids = [f"item {row}" for row in range(len(first) + len(second))]
    index = StaticIndex.build(first, vocab_size=VOCAB, item_ids=ids[: len(first)])
    extended = index.extend(second, item_ids=ids[len(first) :])
    expected = StaticIndex.build(first + second, vocab_size=VOCAB, item_ids=ids)
    assert extended.fingerprint == expected.fingerprint
    assert all(sorted(extended.items(r)) == sorted(expected.items(r)) for r in range(expected.num_sequences))


def test_extending_drops_what_is_no_longer_eligible():
    index = StaticIndex.build([[3, 4], [5, 6]], vocab_size=VOCAB).without([0])
    assert members(index.extend([[7, 8]])) == [[5, 6], [7, 8]]
    with pytest.raises(ValueError, match="with item_ids if, and only if"):
        index.extend([[7, 8]], item_ids=[1])


def test_lookup_takes_the_longest_sequence_and_does_not_judge_what_follows():
    index = StaticIndex.build([[3], [3, 4, 5], [6]], vocab_size=VOCAB)
    rows = torch.tensor([[3, 2, 0, 0], [3, 4, 5, 2], [3, 4, 2, 0], [4, 4, 4, 4], [6, 3, 4, 5]])
    assert index.lookup(rows).tolist() == [0, 1, 0, -1, 2]


def test_describe_counts_what_is_there():
    index, sequences = random_index(0)
    about = index.describe()
    plain = [{tuple(sequence[:size]) for sequence in sequences} for size in range(1, 5)]
    assert about["sequences"] == len(distinct(sequences)) and about["items"] == about["sequences"]
    assert about["levels"][0]["nodes"] == len(plain[0]) == about["levels"][0]["most_children"]
    assert about["levels"][1]["nodes"] <= len(plain[1])
    assert about["bytes"] == sum(tensor.nbytes for tensor in index.trie if isinstance(tensor, torch.Tensor))
    assert about["length"] == 4 and not about["variable_length"]
