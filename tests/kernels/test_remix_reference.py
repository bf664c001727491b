"""ReMix's formulas against what they must be."""

import math

import pytest
import torch

from hf_infeco.kernels.remix.reference import committed, js_divergence, soft_embedding

MASK = 3


def distribution(size, sharpness=1.0, seed=0):
    return (sharpness * torch.randn(size, generator=torch.Generator().manual_seed(seed))).softmax(-1)


@pytest.fixture
def weight():
    return torch.randn(100, 8, generator=torch.Generator().manual_seed(1))


def test_a_certain_position_looks_like_its_token_at_beta_one_and_like_the_mask_at_beta_zero(weight):
    p = torch.zeros(100).index_fill(0, torch.tensor([7]), 1.0)
    torch.testing.assert_close(soft_embedding(p, weight, MASK, 1.0), weight[7])
    assert torch.equal(soft_embedding(p, weight, MASK, 0.0), weight[MASK])


def test_mass_that_is_not_held_stays_on_the_mask(weight):
    p = torch.full((100,), 0.5 / 98)
    p[7], p[8], p[MASK] = 0.3, 0.2, 0.0  # 0.3, then 0.5 of at most 0.6, then as many small ones as fit
    p /= p.sum()
    held = torch.tensor([7, 8])
    rest = [token for token in range(100) if token not in (MASK, 7, 8)][:19]  # 19 of 0.0051 and less fit into 0.1
    kept = torch.cat([held, torch.tensor(rest)])
    expected = (1 - p[kept].sum()) * weight[MASK] + p[kept] @ weight[kept]
    torch.testing.assert_close(soft_embedding(p, weight, MASK, 1.0), expected)


def test_no_more_than_fifty_tokens_are_held(weight):
    p = torch.zeros(100)
    p[10:100] = torch.linspace(2, 1, 90)
    p /= p.sum()  # the largest is 0.015, so 0.2 of the mass may be held: about 14 tokens
    held = p[10:100].cumsum(0) <= 0.2
    expected = weight[MASK] + (p[10:100] * held) @ (weight[10:100] - weight[MASK])
    torch.testing.assert_close(soft_embedding(p, weight, MASK, 1.0), expected)


def test_the_likeliest_token_is_held_whatever_its_mass(weight):
    p = torch.zeros(100).index_fill(0, torch.tensor([5]), 0.95)
    p[6] = 0.05
    torch.testing.assert_close(soft_embedding(p, weight, MASK, 1.0), 0.95 * weight[5] + 0.05 * weight[MASK])


def test_the_divergence_is_symmetric_zero_for_equals_and_ln_two_for_what_shares_nothing():
    p, q = distribution((20, 50)), distribution((20, 50), seed=1)
    torch.testing.assert_close(js_divergence(p, q), js_divergence(q, p))
    assert js_divergence(p, p).abs().max() < 1e-6
    apart = js_divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert float(apart) == pytest.approx(math.log(2))


def test_a_forgotten_distribution_diverges_by_half_of_ln_two_from_any():
    """So the released code, which rejects above 0.3, rejects a position again and again once it has."""
    p = distribution((20, 50), sharpness=3)
    torch.testing.assert_close(js_divergence(torch.zeros_like(p), p), torch.full((20,), math.log(2) / 2))


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [
        ([0.5, 0.7, 0.6], {1}),  # none is sure enough: the surest
        ([0.7, 0.7], {0}),  # of equals the first
        ([0.9, 0.8, 0.81], {0, 2}),  # more than tau, not tau itself
        ([0.9] * 6, {0, 1, 2, 3, 4}),  # no fewer than five may be committed
        ([0.9] * 10, set(range(7))),  # 70 %
        ([0.9] * 100, set(range(20))),  # no more than twenty
    ],
)
def test_positions_are_committed(confidence, expected):
    assert committed(confidence, tau_conf=0.8) == expected
