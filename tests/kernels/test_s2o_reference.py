"""The S2O reference: exact at tau = 0 whatever the shape, and beyond that what its docstrings say."""

import functools
import math
from itertools import pairwise

import pytest
import torch

from hf_infeco.kernels.pairs import PairStats, count_causal_pairs
from hf_infeco.kernels.s2o import granules
from hf_infeco.kernels.s2o.granules import cut_into_granules
from hf_infeco.kernels.s2o.reference import frame_of, judge, s2o_prefill

from .s2o_cases import attend, check_far_past, dense, distance, make_case

SEGMENT, GRANULE = 32, 4
SETTINGS = {"segment": SEGMENT, "granule": GRANULE}

pytestmark = pytest.mark.usefixtures("one_thread")


prefill = functools.partial(attend, s2o_prefill)


def random_heads(batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim=None, dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, q_len, head_dim, generator=rng).to(dtype)
    key = torch.randn(batch, kv_heads, kv_len, head_dim, generator=rng).to(dtype)
    value = torch.randn(batch, kv_heads, kv_len, value_dim or head_dim, generator=rng).to(dtype)
    return query, key, value


def assert_exact_at_tau_zero(query, key, value, tolerance=1e-5, **settings):
    scale = query.shape[-1] ** -0.5
    out, stats = prefill(query, key, value, scale=scale, tau=0.0, **{**SETTINGS, **settings})
    assert out.dtype == query.dtype
    torch.testing.assert_close(out.float(), dense(query, key, value), rtol=tolerance, atol=tolerance)
    pairs = query.shape[0] * query.shape[1] * count_causal_pairs(query.shape[2], key.shape[2])
    assert stats == PairStats(pairs, pairs, 0.0, query.shape[0] * query.shape[1] * query.shape[2])


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_tau_zero_is_dense_for_every_head_shape(head_dim, ratio):
    assert_exact_at_tau_zero(*random_heads(2, 2 * ratio, 2, 131, 131, head_dim))


@pytest.mark.parametrize("length", [1, 2, 7, SEGMENT - 1, SEGMENT, SEGMENT + 1, 97, 3 * SEGMENT, 211])
def test_tau_zero_is_dense_at_every_length(length):
    assert_exact_at_tau_zero(*random_heads(2, 4, 2, length, length, 64))


@pytest.mark.parametrize("q_len, kv_len", [(1, 200), (5, 131), (SEGMENT, 200), (SEGMENT + 1, 199), (97, 101)])
def test_queries_may_be_the_end_of_a_longer_cache(q_len, kv_len):
    assert_exact_at_tau_zero(*random_heads(2, 4, 2, q_len, kv_len, 64))


@pytest.mark.parametrize("value_dim", [32, 128])
def test_values_may_have_their_own_head_dim(value_dim):
    assert_exact_at_tau_zero(*random_heads(1, 4, 2, 131, 131, 64, value_dim=value_dim))


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_low_precision_costs_the_rounding_of_the_output_only(dtype, tolerance):
    assert_exact_at_tau_zero(*random_heads(1, 4, 2, 131, 131, 64, dtype=dtype), tolerance=tolerance)


@pytest.mark.parametrize(
    "settings",
    [{"granule": 2}, {"granule": 16}, {"segment": 4}, {"segment": 512}, {"tile": 16}, {"compensate": False}],
    ids=str,
)
def test_tau_zero_is_dense_under_every_setting(settings):
    assert_exact_at_tau_zero(*random_heads(1, 2, 1, 67, 131, 64), **settings)


def test_transposed_inputs_give_the_same_output():
    """Models hand over `[B, L, H, D]` tensors transposed, so nothing here is contiguous."""
    query, key, value = random_heads(2, 4, 2, 131, 131, 64)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    assert_exact_at_tau_zero(*strided)


def test_a_sink_joins_the_softmax_of_its_head():
    case, sinks = random_heads(2, 4, 2, 97, 131, 64), torch.tensor([-30.0, 0.0, 3.0, 30.0])
    out, stats = prefill(*case, scale=0.125, tau=0.0, sinks=sinks, **SETTINGS)
    torch.testing.assert_close(out, dense(*case, sinks), rtol=1e-5, atol=1e-5)
    assert stats.density == 1
    with_sink, without = (prefill(*case, scale=0.125, tau=0.01, sinks=x, **SETTINGS)[1] for x in (sinks, None))
    assert with_sink.density < without.density  # what a sink takes, no visit can change
    assert with_sink.missed < without.missed


def test_huge_logits_do_not_overflow():
    query, key, value = random_heads(1, 2, 1, 131, 131, 64)
    assert_exact_at_tau_zero(query * 40, key * 40, value, tolerance=1e-3)


@pytest.mark.parametrize("compensate", [True, False])
def test_an_unvisited_past_far_above_the_near_keys_does_not_overflow(compensate):
    check_far_past(s2o_prefill, SEGMENT, GRANULE, compensate)


@pytest.fixture
def none_scattered(monkeypatch):
    """One or two queries tell keys apart along one or two directions only: some key of any granule lies far off."""
    monkeypatch.setattr(granules, "FAR", math.inf)


def test_the_least_a_row_visits_is_its_segment_and_the_odd_keys(none_scattered):
    query, key, value = random_heads(1, 1, 1, 1, 6 * SEGMENT + 5, 64)
    _, stats = prefill(query, key, value, scale=0.125, tau=1e9, **SETTINGS)
    assert stats.visited_pairs == 5 + 6 * SEGMENT // GRANULE
    assert stats.causal_pairs == 6 * SEGMENT + 5


def test_each_row_decides_alone(none_scattered):
    """One row has all its mass on itself, the other spreads it: the first must stop although the second goes on."""
    query, key, value = random_heads(1, 1, 1, 2, 1026, 64)
    query[..., 0, :] = 0
    query[..., 1, :] = key[..., -1, :] * 50
    _, both = prefill(query, key, value, scale=0.125, tau=0.01, **SETTINGS)
    _, focused = prefill(query[:, :, 1:], key, value, scale=0.125, tau=0.01, **SETTINGS)
    least = 2 + 1024 // GRANULE
    assert focused.visited_pairs == least
    assert both.visited_pairs < 2 * least  # a query of zeros likes all keys alike: their means are exact


def test_a_smaller_tau_visits_more():
    case = make_case(300)
    runs = [prefill(*case, scale=0.125, tau=tau, **SETTINGS) for tau in (0.1, 0.003, 0.001, 0.0)]
    pairs = [stats.visited_pairs for _, stats in runs]
    assert pairs == sorted(set(pairs))


@pytest.mark.parametrize("tile", [1, 16])
def test_target_mass_is_reached_by_estimate(tile):
    case = make_case(300)
    options = {"scale": 0.125, "tau": 0.9, "tile": tile, **SETTINGS}
    loose, tight = (prefill(*case, target_mass=target, **options)[1] for target in (0.9, 0.999))
    assert loose.missed <= 0.1 and tight.missed <= 0.001
    assert loose.visited_pairs < tight.visited_pairs < tight.causal_pairs


def test_rows_of_a_tile_share_the_mass_that_they_miss():
    """Only their mean reaches the target: alone, a diffuse row visits more than beside one that misses nothing."""
    query, key, value = random_heads(1, 1, 1, 2, 1026, 64)
    query[..., 1, :] = key[..., -1, :] * 50
    options = {"scale": 0.125, "tau": 0.9, "target_mass": 0.6, **SETTINGS}
    alone, together = (prefill(query, key, value, tile=tile, **options)[1] for tile in (1, 2))
    assert alone.missed < 0.3 < together.missed <= 0.4


def test_means_of_what_is_not_visited_make_the_error_smaller():
    case = make_case(600)
    options = {"scale": 0.125, "tau": 0.05, **SETTINGS}
    (out, stats), (without, alike) = (prefill(*case, compensate=yes, **options) for yes in (True, False))
    assert distance(out, dense(*case)) < distance(without, dense(*case)) / 2
    assert (stats.visited_pairs, stats.missed_mass) == pytest.approx((alike.visited_pairs, alike.missed_mass))


def test_missed_mass_is_the_true_one_within_a_fifth():
    """By the definition: softmax mass, over all keys, of those that were not visited."""
    query, key, value = make_case(600)
    _, stats = prefill(query, key, value, scale=0.125, tau=0.05, record=True, tile=10**6, **SETTINGS)
    logits = query @ key.repeat_interleave(2, 1).mT * 0.125
    mass = logits.masked_fill(torch.ones(600, 600, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    # Rows of a segment decide together here, so that what a segment visited is known key by key.
    visited = stats.visits[0, 0].repeat_interleave(SEGMENT, 0)[:600]
    true = float((mass * (visited == 0)).sum(-1).mean())
    assert stats.missed == pytest.approx(true, rel=0.2)


def test_judging_knows_the_mass_of_a_gaussian_granule():
    """Keys drawn around a mean with a variance: the estimate is the expected sum of exp(logit)."""
    rng = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 10_000, 8, generator=rng) * torch.linspace(0.1, 0.6, 8)
    query = torch.randn(4, 8, generator=rng)
    mean, variance = keys.mean(1), keys.var(1)
    (few, _), (many, lse) = (
        judge(query, query.square(), mean, variance, torch.zeros(4), count) for count in (100, 10_000)
    )
    true = (query @ keys[0].T).exp().sum(-1)
    torch.testing.assert_close(lse[:, 0].exp(), true, rtol=0.05, atol=0)
    assert (many < few / 9).all()  # the more keys, the better known their sum


@pytest.mark.parametrize("spread", [1, 3, 8, 16, 22])
def test_judging_a_wide_granule_expects_no_keys_that_it_does_not_hold(spread):
    """The estimate lies between the usual sum of exp(logit) of n draws, and the expected one, which is far above."""
    count, drawn = 31, torch.randn(2000, 31, generator=torch.Generator().manual_seed(0)) * spread
    one = torch.ones(1, 1)
    _, lse = judge(one, one, 0 * one, one * spread**2, torch.zeros(1), count)
    usual, expected = drawn.logsumexp(1).median(), math.log(count) + spread**2 / 2
    assert usual - 0.1 < lse <= expected + 1e-5


@pytest.mark.parametrize("queries", [1, 5, 2000])
def test_in_their_frame_queries_spread_alike_and_logits_stay(queries):
    rng = torch.Generator().manual_seed(0)
    query = (
        torch.randn(2, 3, queries, 16, generator=rng)
        * torch.logspace(0.5, -0.5, 16)
        @ torch.randn(16, 16, generator=rng)
    )
    key = torch.randn(2, 40, 16, generator=rng)
    frame = frame_of(query, key)
    placed, keys = query.flatten(1, 2) @ frame.queries, key @ frame.keys
    logits = query.flatten(1, 2) @ key.mT
    torch.testing.assert_close(placed @ keys.mT, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))
    if queries > 16:
        moment = placed.mT @ placed / (3 * queries)
        even = moment.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(16)
        assert (moment - even).norm() < 0.1 * even.norm()


def test_queries_of_zeros_or_nan_have_a_frame_too():
    query = torch.zeros(2, 1, 40, 16)
    query[1, 0, 3, 5] = torch.nan
    frame = frame_of(query, torch.zeros(2, 30, 16))
    assert all(part.isfinite().all() for part in frame)


def test_an_estimate_beyond_trust_is_always_visited():
    one = torch.ones(1, 1)
    promise, _ = judge(one, one, 0 * one, one * 1e4, torch.full((1,), 1e3), 31)
    assert promise == torch.inf


def test_granules_hold_every_key_of_their_block_once():
    keys = torch.randn(2, 200, 64, generator=torch.Generator().manual_seed(0))
    cut = cut_into_granules(keys, keys, torch.eye(64).repeat(2, 1, 1), SEGMENT * 2, GRANULE)
    held = torch.cat([cut.order.flatten(1), cut.odd], 1).sort(1).values
    assert torch.equal(held, torch.arange(192).expand(2, -1))
    for block, (first, last) in enumerate(zip(cut.order[0].amin(1), cut.order[0].amax(1), strict=True)):
        assert first // 64 == last // 64 == block * GRANULE // 64


def test_granules_are_like_keys():
    """Keys around a few centres: what lies in a granule is of one centre, and what is far from all of them is odd."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 64, generator=rng) * 3
    which = torch.arange(64) % 4
    keys = centres[which] + torch.randn(64, 64, generator=rng) * 0.1
    keys[::4] *= 4  # the first of each granule's worth
    cut = cut_into_granules(keys[None], keys[None], torch.eye(64)[None], 64, 4)
    assert set(cut.odd[0].tolist()) == set(range(0, 64, 4))
    torch.testing.assert_close(cut.mean[0, 0], keys[cut.order[0, 0]].mean(0))
    torch.testing.assert_close(cut.variance[0, 0], keys[cut.order[0, 0]].var(0, correction=0))
    assert cut.variance.mean() < keys.var(0).mean() / 10


def test_chunked_prefill_with_whole_segments_equals_one_prefill():
    """Granules belong to their block and judge by the chunk's own queries: only the frame of likeness differs."""
    query, key, value = make_case(8 * SEGMENT, kv_heads=2)
    options = {"scale": 0.125, "tau": 0.02, **SETTINGS}
    whole, stats = prefill(query, key, value, **options)
    cuts = [0, 3 * SEGMENT, 4 * SEGMENT, 8 * SEGMENT]
    parts = [prefill(query[:, :, a:b], key[:, :, :b], value[:, :, :b], **options) for a, b in pairwise(cuts)]
    chunked, total = torch.cat([out for out, _ in parts], 2), sum((part for _, part in parts), PairStats(0, 0))
    left_out = distance(whole, dense(query, key, value))
    assert distance(chunked, dense(query, key, value)) == pytest.approx(left_out, rel=0.3)
    assert total.visited_pairs == pytest.approx(stats.visited_pairs, rel=0.05) and stats.density < 1


def test_nothing_has_no_density():
    assert PairStats(0, 0).density is None and PairStats(0, 0).missed is None
