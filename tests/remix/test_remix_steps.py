"""The fast paths of one step are the formulas of `kernels/remix/reference.py`, row by row."""

import pytest
import torch

from hf_infeco.kernels.remix import reference
from hf_infeco.remix import RemixConfig
from hf_infeco.remix.mixing import js_divergence, soft_embeddings
from hf_infeco.remix.rules import accept


def distributions(rows, size, seed):
    generator = torch.Generator().manual_seed(seed)
    sharpness = torch.rand(rows, 1, generator=generator) * 6
    return (sharpness * torch.randn(rows, size, generator=generator)).softmax(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [2, 20, 50, 51, 1009])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_soft_embeddings_are_those_of_the_reference(vocabulary, beta, dtype):
    p = distributions(17, vocabulary, seed=vocabulary)
    weight = torch.randn(vocabulary, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.stack([reference.soft_embedding(row, weight, 1, beta) for row in p])
    torch.testing.assert_close(soft_embeddings(p, weight, 1, beta), expected)


def test_beta_zero_shows_exactly_the_mask():
    weight = torch.randn(100, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert (soft_embeddings(distributions(9, 100, 0), weight, 1, 0.0) == weight[1]).all()


@pytest.mark.parametrize("vocabulary", [2, 50, 1009])
def test_divergences_are_those_of_the_reference(vocabulary):
    p, q = distributions(40, vocabulary, 1), distributions(40, vocabulary, 2)
    p[:5] = 0.0  # forgotten
    p[5, 0] = q[5, 1] = 0.0
    torch.testing.assert_close(js_divergence(p, q), reference.js_divergence(p, q), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 5, 7, 10, 31, 64])
def test_a_row_commits_what_the_reference_commits(length):
    generator = torch.Generator().manual_seed(length)
    confidence = (torch.rand(12, length, generator=generator) * 10).round() / 10  # many equals
    window = torch.rand(12, length, generator=generator) < torch.linspace(0, 1, 12)[:, None]
    accepted = accept(confidence, window, RemixConfig(tau_conf=0.5))
    for row in range(12):
        places = window[row].nonzero().flatten()
        expected = reference.committed(confidence[row, places].tolist(), 0.5)
        assert set(accepted[row].nonzero().flatten().tolist()) == {int(places[at]) for at in expected}


@pytest.mark.parametrize(("strategy", "count"), [("one", 1), ("top_k", 3)])
def test_the_other_strategies_commit_the_surest(strategy, count):
    confidence = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.95]])
    window = torch.tensor([[True, True, True, True, False]])
    accepted = accept(confidence, window, RemixConfig(strategy=strategy, top_k=3))
    assert accepted[0].nonzero().flatten().tolist() == [1, 2, 3][:count]
