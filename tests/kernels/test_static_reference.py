"""STATIC's formulas against a plain dict of prefixes: where tokens lead, what may follow, what scores are left."""

import pytest
import torch

from hf_infeco.kernels.static import reference
from hf_infeco.kernels.static.reference import DEAD, DONE, FREE

from ..static.catalogues import EOS, TOKENS, VOCAB, DictTrie, random_index

SHAPES = [
    dict(count=300, length=4),
    dict(count=300, length=5, variable=True),
    dict(count=2, length=3),
    dict(count=1, length=3),
    dict(count=60, length=1),
    dict(count=2000, length=2),
]
NO_TOKENS = torch.zeros(0, dtype=torch.int64)


def prefixes(sequences, count=100, seed=0):
    """Prefixes of sequences, whole ones, and ones that went astray, as rows of one length: (tokens, start)."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(map(len, sequences)) + 2
    rows, starts = [], []
    for _ in range(count):
        sequence = sequences[int(torch.randint(len(sequences), (1,), generator=generator))]
        tokens = sequence[: int(torch.randint(len(sequence) + 1, (1,), generator=generator))]
        if torch.rand(1, generator=generator) < 0.3:
            tokens = [*tokens, TOKENS[int(torch.randint(len(TOKENS), (1,), generator=generator))]]
        rows.append([1] * (longest - len(tokens)) + tokens)
        starts.append(longest - len(tokens))
    return torch.tensor(rows), torch.tensor(starts)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_a_walk_ends_where_the_prefix_says(shape, seed):
    index, sequences = random_index(seed, **shape)
    plain = DictTrie(sequences)
    tokens, start = prefixes(sequences, seed=seed)
    node, depth = reference.walk(index.trie, tokens, start)
    whole = reference.is_whole(index.trie, node, depth)
    entry, after, legal = reference.continuations(index.trie, node, depth, max(index.trie.widths))
    for row, (ids, begin) in enumerate(zip(tokens.tolist(), start.tolist(), strict=True)):
        prefix = tuple(ids[begin:])
        on_the_way = prefix in plain.next or prefix in plain.whole
        assert (node[row] >= 0) == on_the_way, prefix
        if not on_the_way:
            left_at = next(n for n in range(len(prefix)) if prefix[: n + 1] not in {*plain.next, *plain.whole})
            assert node[row] == (DONE if prefix[:left_at] in plain.whole else DEAD)
        assert whole[row] == (prefix in plain.whole)
        follows = index.trie.alphabet[entry[row][legal[row]]].tolist()
        assert follows == sorted(plain.next.get(prefix, set()))
    every = legal.nonzero()[:, 0]  # the row of each legal slot
    stepped = reference.step(index.trie, node[every], depth[every], index.trie.alphabet[entry[legal]].long())
    assert torch.equal(stepped, after[legal])


@pytest.mark.parametrize("ends", [NO_TOKENS, torch.tensor([EOS]), torch.tensor([EOS, 60])], ids=["", "eos", "two"])
@pytest.mark.parametrize("variable", [False, True])
def test_scores_of_legal_tokens_stay_and_all_others_fall(ends, variable):
    index, sequences = random_index(0, variable=variable)
    plain = DictTrie(sequences)
    tokens, start = prefixes(sequences)
    scores = torch.randn(len(tokens), VOCAB)
    got, node, blocked = reference.constrain(index.trie, tokens, start, scores, ends, free_after=False)
    assert not blocked.any()
    for row, (ids, begin) in enumerate(zip(tokens.tolist(), start.tolist(), strict=True)):
        prefix = tuple(ids[begin:])
        allowed = set(plain.next.get(prefix, set()))
        if prefix in plain.whole or node[row] < 0:
            allowed |= set(ends.tolist())
        allowed = sorted(allowed or range(VOCAB))  # nothing to follow: the row is left alone
        expected = torch.full((VOCAB,), float("-inf"))
        expected[allowed] = scores[row, allowed]
        assert torch.equal(got[row], expected)


def test_a_row_without_a_start_is_left_alone():
    index, _ = random_index(0)
    scores = torch.randn(2, VOCAB)
    tokens, start = torch.ones(2, 3, dtype=torch.int64), torch.tensor([-1, 3])
    got, node, _ = reference.constrain(index.trie, tokens, start, scores, NO_TOKENS, free_after=False)
    assert node[0] == FREE and torch.equal(got[0], scores[0])
    assert node[1] == 0 and not torch.isfinite(got[1]).all()


@pytest.mark.parametrize("ends", [NO_TOKENS, torch.tensor([EOS])], ids=["", "eos"])
def test_rows_are_free_after_a_sequence_where_that_is_asked_for(ends):
    index, sequences = random_index(0)
    whole = torch.tensor([sequences[0], sequences[1]])
    behind = torch.cat([whole, torch.tensor([[EOS], [EOS]])], 1)
    scores, start = torch.randn(2, VOCAB), torch.zeros(2, dtype=torch.int64)
    at_end, _, _ = reference.constrain(index.trie, whole, start, scores, ends, free_after=True)
    assert torch.isfinite(at_end).sum(1).tolist() == ([1, 1] if len(ends) else [VOCAB, VOCAB])
    after, node, _ = reference.constrain(index.trie, behind, start, scores, ends, free_after=True)
    assert torch.equal(after, scores) and (node == DONE).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_row_whose_legal_tokens_were_all_forbidden_keeps_them_with_a_score_that_stays_finite(dtype):
    index, sequences = random_index(0)
    allowed = sorted(DictTrie(sequences).next[()])
    scores = torch.randn(2, VOCAB).to(dtype)
    scores[0, allowed] = float("-inf")
    tokens, start = torch.ones(2, 1, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    got, _, blocked = reference.constrain(index.trie, tokens, start, scores, NO_TOKENS, free_after=False)
    assert blocked.tolist() == [True, False]
    assert (got[0, allowed] == reference.blocked_score(dtype)).all() and (got[0, allowed] < -1000).all()
    assert torch.isfinite(got[0] / 0.05).sum() == len(allowed)
