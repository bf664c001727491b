"""The compiled path gives bit for bit what the reference gives, in place."""

import pytest
import torch

from hf_infeco.kernels.static import cpu, reference
from hf_infeco.static import StaticIndex

from ..static.catalogues import EOS, VOCAB, random_index
from .test_static_reference import SHAPES, prefixes


def assert_same(index: StaticIndex, tokens, start, scores, ends, free_after):
    expected = reference.constrain(index.trie, tokens, start, scores, ends, free_after)
    given = scores.clone()
    got = cpu.constrain(index.trie, tokens, start, given, ends, free_after)
    assert got[0] is given
    for mine, right in zip(got, expected, strict=True):
        assert torch.equal(mine, right)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ends", [[], [EOS], [EOS, 60]], ids=str)
@pytest.mark.parametrize("free_after", [False, True])
def test_the_compiled_path_equals_the_reference(shape, ends, free_after):
    index, sequences = random_index(4, **shape)
    tokens, start = prefixes(sequences, seed=4)
    start[::7] = -1
    scores = torch.randn(len(tokens), VOCAB)
    scores[::5] = float("-inf")  # what another processor forbade
    assert_same(index, tokens, start, scores, torch.tensor(ends, dtype=torch.int64), free_after)


def test_the_compiled_path_equals_the_reference_on_a_subset():
    index, sequences = random_index(5, variable=True)
    generator = torch.Generator().manual_seed(0)
    subset = index.subset(torch.rand(index.num_items, generator=generator) < 0.2)
    tokens, start = prefixes(sequences, seed=5)
    assert_same(subset, tokens, start, torch.randn(len(tokens), VOCAB), torch.tensor([EOS]), False)


def test_more_than_32767_tokens_on_a_level_and_double_precision():
    tokens = torch.randperm(40_000, generator=torch.Generator().manual_seed(0))[:, None]
    index = StaticIndex.build(torch.cat([tokens, tokens.flip(0)], 1), vocab_size=40_000)
    assert index.trie.code.dtype == torch.int32
    rows = torch.cat([torch.ones(3, 1, dtype=torch.int64), tokens[:3]], 1)
    start, scores = torch.ones(3, dtype=torch.int64), torch.randn(3, 40_000, dtype=torch.float64)
    assert_same(index, rows, start, scores, torch.zeros(0, dtype=torch.int64), False)


def test_token_ids_may_be_a_view_with_strides():
    index, sequences = random_index(6)
    tokens, start = prefixes(sequences, seed=6)
    wide = torch.stack([tokens, tokens], 2)[:, :, 0]
    assert not wide.is_contiguous()
    assert_same(index, wide, start, torch.randn(len(tokens), VOCAB), torch.tensor([EOS]), False)


def wide_nodes() -> tuple[StaticIndex, list[list[int]]]:
    """The root and the nodes below it have most of 70 tokens for children, so both levels have bits."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.cartesian_prod(torch.arange(20, 90), torch.arange(20, 90), torch.arange(20, 22))
    kept = tokens[torch.rand(len(tokens), generator=generator) < 0.8]
    return StaticIndex.build(kept, vocab_size=VOCAB), kept.tolist()


@pytest.mark.parametrize("share", [1.0, 0.3, 0.001])
@pytest.mark.parametrize("ends", [[], [EOS, 30]], ids=str)
def test_nodes_with_much_of_a_level_are_read_from_bits(share, ends):
    index, sequences = wide_nodes()
    assert len(index.trie.head) == 1 + 70
    generator = torch.Generator().manual_seed(1)
    if share < 1:
        mask = torch.rand(index.num_items, generator=generator) < share
        mask[0] = True
        index = index.subset(mask)
        sequences = index.sequences(mask.nonzero()[:, 0]).tolist()
    tokens, start = prefixes(sequences, seed=7)
    scores = torch.randn(len(tokens), VOCAB, generator=generator)
    scores[::5] = float("-inf")
    assert_same(index, tokens, start, scores, torch.tensor(ends, dtype=torch.int64), False)


def test_wide_scores_are_divided_among_threads(monkeypatch):
    monkeypatch.setattr(cpu, "LARGE", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        index, sequences = random_index(4, variable=True)
        tokens, start = prefixes(sequences, seed=4)
        assert_same(index, tokens, start, torch.randn(len(tokens), VOCAB), torch.tensor([EOS]), False)
    finally:
        torch.set_num_threads(before)
