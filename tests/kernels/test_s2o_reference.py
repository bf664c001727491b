"""The S2O reference against dense attention in float32: exact at tau = 0, whatever the shape."""

from itertools import pairwise

import pytest
import torch

from hf_infeco.kernels.s2o.reference import S2OStats, count_causal_pairs, s2o_prefill

SEGMENT, GRANULE = 32, 4
SETTINGS = {"segment": SEGMENT, "granule": GRANULE, "chunk": 16, "patience": 2, "sink": 4, "local": 8}


pytestmark = pytest.mark.usefixtures("one_thread")


def random_heads(batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim=None, dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, q_len, head_dim, generator=rng).to(dtype)
    key = torch.randn(batch, kv_heads, kv_len, head_dim, generator=rng).to(dtype)
    value = torch.randn(batch, kv_heads, kv_len, value_dim or head_dim, generator=rng).to(dtype)
    return query, key, value


def dense(query, key, value, scale):
    """The definition, float32: softmax of scaled logits over the keys not after the query."""
    ratio = query.shape[1] // key.shape[1]
    key, value = (x.float().repeat_interleave(ratio, 1) for x in (key, value))
    logits = query.float() @ key.transpose(-1, -2) * scale  # [B, H, q_len, kv_len]
    future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(logits.shape[-1] - logits.shape[-2] + 1)
    return logits.masked_fill(future, -torch.inf).softmax(-1) @ value


def assert_exact_at_tau_zero(query, key, value, tolerance=1e-5, **settings):
    scale = query.shape[-1] ** -0.5
    out, stats = s2o_prefill(query, key, value, scale=scale, tau=0.0, **{**SETTINGS, **settings})
    assert out.dtype == query.dtype
    torch.testing.assert_close(out.float(), dense(query, key, value, scale), rtol=tolerance, atol=tolerance)
    pairs = query.shape[0] * query.shape[1] * count_causal_pairs(query.shape[2], key.shape[2])
    assert stats == S2OStats(pairs, pairs)


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
    [
        {"sink": 0, "local": 0},
        {"sink": 7, "local": 9},
        {"sink": 500, "local": 500},
        {"granule": 1, "chunk": 1},
        {"chunk": 64},
        {"segment": 4},
        {"segment": 512},
        {"patience": 1},
    ],
)
def test_tau_zero_is_dense_under_every_setting(settings):
    assert_exact_at_tau_zero(*random_heads(1, 2, 1, 67, 131, 64), **settings)


def test_transposed_inputs_give_the_same_output():
    """Models hand over `[B, L, H, D]` tensors transposed, so nothing here is contiguous."""
    query, key, value = random_heads(2, 4, 2, 131, 131, 64)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    assert_exact_at_tau_zero(*strided)


def test_huge_logits_do_not_overflow():
    query, key, value = random_heads(1, 2, 1, 131, 131, 64)
    assert_exact_at_tau_zero(query * 40, key * 40, value, tolerance=1e-3)


def test_the_least_a_row_visits_is_near_keys_and_patience_chunks():
    query, key, value = random_heads(1, 1, 1, 1, 401, 64)
    _, stats = s2o_prefill(query, key, value, scale=0.125, tau=0.999, **SETTINGS)
    near = SETTINGS["sink"] + SETTINGS["local"] + 1
    assert 401 > stats.visited_pairs >= near + SETTINGS["patience"] * SETTINGS["chunk"]
    assert stats.causal_pairs == 401


def test_rows_drop_out_singly():
    """One row has all its mass on itself, the other spreads it: the first must stop although the second goes on."""
    _, key, value = random_heads(1, 1, 1, 2, 1026, 64)
    key[..., :-1, :] *= 0.1
    query = torch.zeros(1, 1, 2, 64)
    query[..., 1, :] = key[..., -1, :] * 50
    settings = {**SETTINGS, "segment": 32}
    _, together = s2o_prefill(query, key, value, scale=0.125, tau=1e-3, **settings)
    spread = 1 + 1024
    assert spread < together.visited_pairs < spread + 200


def test_chunked_prefill_with_whole_segments_equals_one_prefill():
    """An order belongs to its segment, so cutting the prompt between segments changes nothing."""
    query, key, value = random_heads(1, 4, 2, 8 * SEGMENT, 8 * SEGMENT, 64)
    query, key = query * 2, key * 2
    options = {"scale": 0.125, "tau": 0.01, **SETTINGS}
    whole, stats = s2o_prefill(query, key, value, **options)
    cuts = [0, 3 * SEGMENT, 4 * SEGMENT, 8 * SEGMENT]
    parts = [s2o_prefill(query[:, :, a:b], key[:, :, :b], value[:, :, :b], **options) for a, b in pairwise(cuts)]
    torch.testing.assert_close(torch.cat([out for out, _ in parts], 2), whole)
    assert sum((part for _, part in parts), S2OStats(0, 0)) == stats
    assert stats.density < 1


def test_density_of_nothing_is_zero():
    assert S2OStats(0, 0).density == 0
