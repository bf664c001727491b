"""The compiled path gives bit for bit what the reference gives, in place."""

import pytest
import torch

from hf_infeco.kernels.static import cpu, reference
from hf_infeco.static import StaticIndex, wide

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
    subset = index.subset(ranks=torch.rand(index.num_items, generator=generator) < 0.2)
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


def wide_nodes(monkeypatch, step: int) -> tuple[StaticIndex, list[list[int]]]:
    """Nodes of three levels have most of their level's tokens, every `step`-th of 20 to 90, for children: so, bits."""
    monkeypatch.setattr(wide, "LEAST", 2)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.cartesian_prod(*3 * [torch.arange(20, 90, step)])
    kept = tokens[torch.rand(len(tokens), generator=generator) < 0.8]
    index = StaticIndex.build(kept, vocab_size=VOCAB)
    assert len(index.trie.wide) > len(range(20, 90, step)) + 1
    return index, kept.tolist()


@pytest.mark.parametrize("share", [1.0, 0.3, 0.001])
@pytest.mark.parametrize("ends", [[], [EOS, 30]], ids=str)
@pytest.mark.parametrize("step", [2, 5])
def test_nodes_with_much_of_a_level_are_read_from_bits(share, ends, step, monkeypatch):
    index, sequences = wide_nodes(monkeypatch, step)
    generator = torch.Generator().manual_seed(1)
    if share < 1:
        mask = torch.rand(index.num_items, generator=generator) < share
        mask[0] = True
        index = index.subset(ranks=mask)
        sequences = index.sequences(mask.nonzero()[:, 0]).tolist()
    tokens, start = prefixes(sequences, seed=7)
    scores = torch.randn(len(tokens), VOCAB, generator=generator)
    scores[::5] = float("-inf")
    assert_same(index, tokens, start, scores, torch.tensor(ends, dtype=torch.int64), False)


def test_places_beyond_a_damaged_trie_are_never_read():
    """A file that was overwritten in part: decoding may find anything, but it stays within the arrays."""
    index, sequences = random_index(4)
    tokens, start = prefixes(sequences, seed=4)
    generator = torch.Generator().manual_seed(0)
    for name in ("sequences", "first_child", "code", "first_sequence", "wide_bits"):
        part = getattr(index.trie, name)
        noise = torch.randint(-(2**15), 2**15, part.shape, generator=generator, dtype=torch.int32).to(part.dtype)
        trie = index.trie._replace(**{name: noise * 2**16 if part.dtype == torch.int32 else noise})
        cpu.constrain(trie, tokens, start, torch.randn(len(tokens), VOCAB), torch.tensor([EOS]), False)


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
