"""STATIC's Triton kernel gives what the reference gives: in Triton's interpreter, or on the GPU where there is one."""

import pytest
import torch

from hf_infeco.kernels.static import reference
from hf_infeco.static import StaticIndex

from ..static.catalogues import EOS, VOCAB, random_index
from .test_static_reference import SHAPES, prefixes

triton = pytest.importorskip("triton", reason="triton is not installed")
kernels = pytest.importorskip("hf_infeco.kernels.static.triton")

IS_INTERPRETED = triton.knobs.runtime.interpret
CPU = pytest.param("cpu", marks=pytest.mark.skipif(not IS_INTERPRETED, reason="needs TRITON_INTERPRET=1"))
ROWS = 24


@pytest.fixture(params=[CPU, pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that nodes, levels and rows of scores take several of them."""
    monkeypatch.setattr(kernels, "BLOCK", 16)


def assert_same(device, index: StaticIndex, tokens, start, scores, ends=(EOS,), free_after=False):
    ends, given = torch.tensor(ends, dtype=torch.int64), scores.clone()
    expected = reference.constrain(index.trie, tokens, start, scores, ends, free_after)
    moved = (tensor.to(device) for tensor in (tokens, start, given, ends))
    got = kernels.constrain(index.to(device).trie, *moved, free_after)
    for mine, right in zip(got, expected, strict=True):
        assert mine.dtype == right.dtype and torch.equal(mine.cpu(), right)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ends, free_after", [((), False), ((EOS,), False), ((EOS, 60, 5), True), ((), True)], ids=str)
def test_a_row_is_walked_and_masked_like_the_reference(device, shape, ends, free_after):
    index, sequences = random_index(4, **shape)
    tokens, start = prefixes(sequences, count=ROWS, seed=4)
    start[::7] = -1
    scores = torch.randn(ROWS, VOCAB)
    scores[::5] = float("-inf")  # what another processor forbade
    assert_same(device, index, tokens, start, scores, ends, free_after)


@pytest.mark.parametrize("variable", [False, True])
def test_items_that_are_not_eligible_are_not_reached(device, variable):
    index, sequences = random_index(5, variable=variable)
    generator = torch.Generator().manual_seed(0)
    subset = index.subset(ranks=torch.rand(index.num_items, generator=generator) < 0.1)
    tokens, start = prefixes(sequences, count=ROWS, seed=5)
    assert_same(device, subset, tokens, start, torch.randn(ROWS, VOCAB))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_of_scores_is_taken(device, dtype):
    index, sequences = random_index(6)
    tokens, start = prefixes(sequences, count=ROWS, seed=6)
    scores = torch.randn(ROWS, VOCAB, dtype=dtype)
    scores[::5] = float("-inf")
    assert_same(device, index, tokens, start, scores)


def test_a_level_of_more_tokens_than_two_bytes_hold(device, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", 1024)
    tokens = torch.randperm(40_000, generator=torch.Generator().manual_seed(0))[:, None]
    index = StaticIndex.build(torch.cat([tokens, tokens.flip(0)], 1), vocab_size=40_000)
    rows = torch.cat([torch.ones(3, 1, dtype=torch.int64), tokens[:3]], 1)
    assert index.trie.code.dtype == torch.int32
    assert_same(device, index, rows, torch.ones(3, dtype=torch.int64), torch.randn(3, 40_000))


def test_a_token_beyond_31_bits_is_none_of_the_index(device):
    index, sequences = random_index(6)
    tokens = torch.tensor([[1, sequences[0][0] + 2**32], [1, -5], [1, sequences[0][0]]])
    assert_same(device, index, tokens, torch.ones(3, dtype=torch.int64), torch.randn(3, VOCAB))


def test_rows_without_a_token_yet_stand_at_the_root(device):
    index, _ = random_index(0)
    tokens, start = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    got = kernels.constrain(
        index.to(device).trie, tokens.to(device), start.to(device), torch.zeros(2, VOCAB, device=device),
        torch.zeros(0, dtype=torch.int64, device=device), False,
    )  # fmt: skip
    first = index.trie.alphabet[: index.trie.alphabet_start[1]].tolist()
    assert [row.isfinite().nonzero().flatten().tolist() for row in got[0].cpu()] == [first, first]


def test_scores_and_tokens_may_have_strides(device):
    index, sequences = random_index(6)
    tokens, start = prefixes(sequences, count=ROWS, seed=6)
    scores = torch.randn(VOCAB, ROWS).T
    assert not scores.is_contiguous()
    assert_same(device, index, torch.stack([tokens, tokens], 2)[:, :, 0], start, scores)


def test_the_operation_passes_torch_s_own_checks(device):
    """Shapes and dtypes of the fake, and that nothing is written to or aliased."""
    index, sequences = random_index(6)
    tokens, start = prefixes(sequences, count=4, seed=6)
    moved = (tensor.to(device) for tensor in (tokens, start, torch.randn(4, VOCAB), torch.tensor([EOS])))
    trie = index.to(device).trie
    parts = (trie.alphabet, trie.alphabet_start, trie.sequences, trie.first_child, trie.code, trie.first_sequence)
    torch.library.opcheck(kernels._operation, (*parts, None, None, *moved, False))


@pytest.mark.gpu
def test_no_call_waits_for_the_device():
    index, sequences = random_index(6)
    trie = index.to("cuda").trie
    arguments = [tensor.to("cuda") for tensor in (*prefixes(sequences), torch.randn(100, VOCAB), torch.tensor([EOS]))]
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernels.constrain(trie, *arguments, False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
