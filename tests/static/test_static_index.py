"""StaticIndex holds exactly the sequences it was given, in whatever form and order, and derives others from itself."""

import numpy as np
import pandas as pd
import pytest
import torch

from hf_infeco.static import StaticIndex
from hf_infeco.static.checking import find_faults

from .catalogues import EOS, VOCAB, DictTrie, random_index, random_sequences

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


def shuffled_table() -> pd.DataFrame:
    """As it is after a split or a sort: the rows' own numbers are not their places."""
    table = pd.DataFrame({"sku": [f"s{row}" for row in range(6)], "tokens": [[row, row + 1] for row in range(6)]})
    table["number"], table["in_stock"] = range(6), [row % 3 == 0 for row in range(6)]
    return table.sample(frac=1, random_state=1)


@pytest.mark.parametrize("field", ["sku", "number"])
@pytest.mark.parametrize("as_column", [True, False])
def test_a_column_of_a_table_is_read_as_it_stands(field, as_column):
    table = shuffled_table()
    tokens = table.tokens if as_column else list(table.tokens)
    index = StaticIndex.build(tokens, vocab_size=16, item_ids=table[field])
    named = {tuple(index.sequences(rank).tolist()): index.items(rank) for rank in range(6)}
    assert named == {(row, row + 1): [f"s{row}" if field == "sku" else row] for row in range(6)}
    filtered = table[table.in_stock]
    part = StaticIndex.build(filtered.tokens, vocab_size=16, item_ids=filtered[field])
    assert part.fingerprint == index.subset(table.in_stock).fingerprint
    assert part.fingerprint == index.subset(filtered[field]).fingerprint
    wide = pd.DataFrame(table.tokens.tolist(), index=table.index)
    assert StaticIndex.build(wide, vocab_size=16, item_ids=table[field]).fingerprint == index.fingerprint


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list, pd.Series])
def test_a_mask_over_items_is_in_the_order_of_build(kind):
    index = StaticIndex.build([[9, 1], [5, 1], [7, 1]], vocab_size=10, item_ids=["A", "B", "C"])
    assert eligible_members(index.subset(kind([True, False, True]))) == [[7, 1], [9, 1]]
    assert eligible_members(index.without(kind([True, False, True]))) == [[5, 1]]
    assert eligible_members(index.subset(ranks=kind([True, False, True]))) == [[5, 1], [9, 1]]
    assert eligible_members(index.subset(ranks=kind([1]))) == [[7, 1]]
    for arguments in ({}, dict(items=["A"], ranks=[0])):
        with pytest.raises(ValueError, match="either items, or ranks="):
            index.subset(**arguments)
    with pytest.raises(TypeError, match="Ranks are integers"):
        index.subset(ranks=[0.5])
    with pytest.raises(ValueError, match="one bool for each of 3 items"):
        index.subset(kind([True]))


def test_a_mask_fits_what_extend_made_of_the_order():
    index = StaticIndex.build([[9, 1], [5, 1], [7, 1], [5, 1]], vocab_size=10, item_ids=["A", "B", "C", "D"])
    longer = index.without(["B"]).extend([[6, 6], [5, 1]], item_ids=["E", "F"])
    for number, name in enumerate("ACDEF"):
        mask = np.arange(5) == number
        assert longer.subset(mask).fingerprint == longer.subset([name]).fingerprint


@pytest.mark.parametrize("ids", [np.array([2**63 + 5, 7], dtype=np.uint64), [2**63 + 5, 7], [7, -(2**63) - 1]])
def test_ids_beyond_64_bits_are_refused(ids):
    with pytest.raises(ValueError, match=r"item_ids\[[01]\]=.*pass such ids as strings"):
        StaticIndex.build([[1, 2], [2, 3]], vocab_size=9, item_ids=ids)


@pytest.mark.parametrize("ids", [np.array([7, 8], dtype=np.uint64), np.array([7, 8], dtype=object), pd.array([7, 8])])
def test_integers_of_any_kind_are_ids(ids):
    assert StaticIndex.build([[1, 2], [2, 3]], vocab_size=9, item_ids=ids).items(1) == [8]


@pytest.mark.parametrize("ids", [["a", None], ["a", float("nan")], pd.Series(["a", None]), pd.Series([1, None])])
def test_an_id_that_is_missing_is_named(ids):
    with pytest.raises(TypeError, match=r"item_ids\[[01]\]="):
        StaticIndex.build([[1, 2], [2, 3]], vocab_size=9, item_ids=ids)


def test_ids_of_another_kind_are_no_items_of_an_index():
    index = StaticIndex.build([[1, 2], [2, 3]], vocab_size=9, item_ids=[1, 2])
    with pytest.raises(TypeError, match="'1' is no id of this index, whose ids are like 1"):
        index.subset(["1"])
    with pytest.raises(TypeError, match="those of the index included"):
        index.extend([[3, 3]], item_ids=["c"])
    assert index.without([]) is index


@pytest.mark.parametrize("names", [["", "a"], ["", ""], ["a\0", "a"], ["ab" * 200, "b" + "ab" * 199]])
def test_unusual_texts_are_ids_like_others(names):
    index = StaticIndex.build([[1, 2], [2, 3]], vocab_size=9, item_ids=names)
    assert [index.items(rank)[0] for rank in (0, 1)] == names
    assert index.subset(names[1:]).items(1) == names[1:]


@pytest.mark.parametrize(
    "tokens", [[[2**31 + 1, 2]], np.array([[2**33, 2]]), np.array([[2**63]], np.uint64), [[2**63]]]
)
def test_tokens_beyond_31_bits_are_refused_and_not_cut(tokens):
    with pytest.raises(ValueError, match=rf"{np.asarray(tokens)[0, 0]}"):
        StaticIndex.build(tokens, vocab_size=2**31)
    with pytest.raises(ValueError, match="vocab_size=8589934592 must be 1 to"):
        StaticIndex.build([[1]], vocab_size=2**33)


def test_ranks_and_tokens_come_in_any_form():
    index = StaticIndex.build([[3], [3, 4, 5], [6]], vocab_size=np.int64(VOCAB))
    for ranks in ([2, 0], (2, 0), np.array([2, 0], np.uint8), torch.tensor([2, 0], dtype=torch.int32)):
        assert index.sequences(ranks).tolist() == [[6, -1, -1], [3, -1, -1]]
    assert index.sequences(1).tolist() == [3, 4, 5] and index.sequences([]).shape == (0, 3)
    for tokens in ([[3, 4, 5, 2], [6]], [np.array([3, 4, 5]), (6, 9)], pd.Series([[3, 4, 5], [6]])):
        assert index.lookup(tokens).tolist() == [1, 2]
    assert index.lookup(np.array([[6, 6]], np.uint16)).tolist() == [2]
    assert index.lookup([[2**40 + 6], [-3]]).tolist() == [-1, -1]
    assert index.items(np.int32(2)) == index.items(torch.tensor(2)) == [2]
    for wrong in ([3], [-2]):
        with pytest.raises(IndexError, match="Ranks run from"):
            index.sequences(wrong)
    with pytest.raises(TypeError, match="they are integers"):
        index.sequences([0.5])
    with pytest.raises(ValueError, match="pass 2-D rows"):
        index.lookup(torch.tensor([3, 4]))


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
@pytest.mark.parametrize("lengths", [(4, 6), (6, 4), (1, 3)])
def test_extending_is_building_from_both(variable, lengths):
    first, second = (random_sequences(3 + at, length=lengths[at], variable=variable) for at in (0, 1))
    second += [[90] * lengths[1]]  # a token that is new to every level
    ids = [f"item {row}" for row in range(len(first) + len(second))]
    index = StaticIndex.build(first, vocab_size=VOCAB, item_ids=ids[: len(first)])
    extended = index.extend(second, item_ids=ids[len(first) :])
    expected = StaticIndex.build(first + second, vocab_size=VOCAB, item_ids=ids)
    assert extended.fingerprint == expected.fingerprint and not find_faults(extended, extended.fingerprint)
    assert all(torch.equal(mine, right) for mine, right in zip(extended.trie[:9], expected.trie[:9], strict=True))
    assert all(extended.items(r) == expected.items(r) for r in range(expected.num_sequences))


def test_extending_to_more_tokens_than_two_bytes_hold_widens_the_codes():
    tokens = torch.randperm(40_000, generator=torch.Generator().manual_seed(0))[:, None]
    index = StaticIndex.build(tokens[:30_000], vocab_size=40_000)
    assert index.trie.code.dtype == torch.int16
    assert index.extend(tokens[30_000:]).fingerprint == StaticIndex.build(tokens, vocab_size=40_000).fingerprint


def test_extending_drops_what_is_no_longer_eligible():
    index = StaticIndex.build([[3, 4], [5, 6]], vocab_size=VOCAB).without([0])
    assert members(index.extend([[7, 8]])) == [[5, 6], [7, 8]]
    with pytest.raises(ValueError, match="with item_ids if, and only if"):
        index.extend([[7, 8]], item_ids=[1])


def test_lookup_takes_the_longest_sequence_and_does_not_judge_what_follows():
    index = StaticIndex.build([[3], [3, 4, 5], [6]], vocab_size=VOCAB)
    rows = torch.tensor([[3, 2, 0, 0], [3, 4, 5, 2], [3, 4, 2, 0], [4, 4, 4, 4], [6, 3, 4, 5]])
    assert index.lookup(rows).tolist() == [0, 1, 0, -1, 2]


@pytest.mark.parametrize("variable", [False, True])
def test_allowed_tokens_are_what_a_dict_of_prefixes_says(variable):
    index, sequences = random_index(0, variable=variable)
    plain = DictTrie(sequences, EOS)
    for prefix in [(), *list(plain.next)[::7]]:
        assert index.allowed_tokens(prefix, EOS) == sorted(plain.next.get(tuple(prefix), []))
    assert index.allowed_tokens(np.array([90])) == [] and index.allowed_tokens([90], [EOS, 60]) == [EOS, 60]
    subset = index.subset(ranks=[0])
    first = [token for token in index.sequences(0).tolist() if token >= 0]
    assert [subset.allowed_tokens(torch.tensor(first[:at])) for at in range(len(first))] == [[t] for t in first]


def test_describe_counts_what_is_there():
    index, sequences = random_index(0)
    about = index.describe()
    plain = [{tuple(sequence[:size]) for sequence in sequences} for size in range(1, 5)]
    assert about["sequences"] == len(distinct(sequences)) and about["items"] == about["sequences"]
    assert about["levels"][0]["nodes"] == len(plain[0]) == about["levels"][0]["most_children"]
    assert about["levels"][1]["nodes"] <= len(plain[1])
    assert about["bytes"] == sum(tensor.nbytes for tensor in index.trie if isinstance(tensor, torch.Tensor))
    assert about["length"] == 4 and not about["variable_length"]
