"""The public operator: left padding, when it runs dense, and how it refuses inputs that do not fit."""

import pytest
import torch
import torch.nn.functional as F

from hf_infeco import S2OConfig, s2o_attention
from hf_infeco.dense import DENSE_ROWS
from hf_infeco.prefill import causal_attention
from hf_infeco.s2o.operation import SparsePrefill

pytestmark = pytest.mark.usefixtures("one_thread")

SPARSE = S2OConfig(tau=0.02, segment=64, granule=16, crossover=0)
LENGTH = 300


@pytest.fixture
def heads():
    rng = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, LENGTH, 64, generator=rng) * 2
    key = torch.randn(3, 2, LENGTH, 64, generator=rng)
    value = torch.randn(3, 2, LENGTH, 64, generator=rng)
    return query, key, value


def row_without_padding(heads, row, start, config):
    query, key, value = (x[row : row + 1, :, start:] for x in heads)
    return causal_attention(query, key, value, config and SparsePrefill(config))


@pytest.mark.parametrize("config", [SPARSE, S2OConfig(tau=0.0), None], ids=["sparse", "exact", "dense"])
def test_left_padding_equals_the_row_without_padding(heads, config):
    starts = [0, 37, 37]
    out, stats = causal_attention(*heads, config and SparsePrefill(config), starts=starts)
    visited = 0
    for row, start in enumerate(starts):
        alone, counted = row_without_padding(heads, row, start, config)
        torch.testing.assert_close(out[row : row + 1, :, start:], alone, rtol=1e-5, atol=1e-5)
        assert (out[row, :, :start] == 0).all()
        visited += counted.visited_pairs
    assert stats.visited_pairs == visited


def test_padded_keys_are_never_visited(heads):
    query, key, value = heads
    key, value = key.clone(), value.clone()
    key[1, :, :50], value[1, :, :50] = torch.nan, torch.nan
    out = s2o_attention(query, key, value, SPARSE, starts=[0, 50, 0])
    assert out.isfinite().all()


def test_left_padding_of_a_filled_cache(heads):
    """A chunk of a chunked prefill: padding ends in the cache, in the chunk, or never."""
    query, key, value = heads
    chunk = query[:, :, 200:]  # more than a segment, of which row 1 attends a part, densely
    out = s2o_attention(chunk, key, value, SPARSE, starts=[40, 220, LENGTH])
    in_cache = s2o_attention(chunk[:1], key[:1, :, 40:], value[:1, :, 40:], SPARSE)
    in_chunk = s2o_attention(chunk[1:2, :, 20:], key[1:2, :, 220:], value[1:2, :, 220:], SPARSE)
    torch.testing.assert_close(out[:1], in_cache)
    torch.testing.assert_close(out[1:2, :, 20:], in_chunk)
    assert (out[1, :, :20] == 0).all() and (out[2] == 0).all()


@pytest.mark.parametrize(
    "config", [S2OConfig(crossover=LENGTH + 1), S2OConfig(tau=0.0, crossover=0)], ids=["short", "tau=0"]
)
def test_dense_runs_bit_for_bit_as_sdpa(heads, config):
    out, stats = causal_attention(*heads, SparsePrefill(config))
    assert torch.equal(out, F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True))
    assert stats.density == 1


def test_a_row_that_padding_makes_short_runs_dense(heads):
    config = S2OConfig(tau=0.1, segment=64, granule=16, crossover=LENGTH)
    _, unpadded = causal_attention(*heads, SparsePrefill(config))
    _, padded = causal_attention(*heads, SparsePrefill(config), starts=[10, 10, 10])
    assert unpadded.density < 1
    assert padded.density == 1


def softmax_with_sinks(query, key, value, sinks, start):
    """The definition in float64, for one row of a batch whose keys begin at `start`."""
    query, key, value, sinks = (x.double() for x in (query, key, value, sinks))
    key, value = (x[:, start:].repeat_interleave(query.shape[0] // x.shape[0], 0) for x in (key, value))
    logits = query @ key.mT * query.shape[-1] ** -0.5
    future = torch.ones(logits.shape[1:], dtype=torch.bool).triu(key.shape[1] - query.shape[1] + 1)
    logits = torch.cat([logits.masked_fill(future, -torch.inf), sinks[:, None, None].expand(*logits.shape[:2], 1)], 2)
    return logits.softmax(-1)[..., :-1] @ value


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize("value_dim", [64, 48])
@pytest.mark.parametrize(
    "config", [S2OConfig(tau=1e-12, segment=64, granule=16, crossover=0), None], ids=["sparse", "dense"]
)
@pytest.mark.parametrize("q_len", [LENGTH, 100, 1])
def test_sinks_are_a_column_of_the_softmax(heads, config, q_len, value_dim, dtype, tolerance):
    query, key, value = (x.to(dtype) for x in heads)
    query, value = query[:, :, LENGTH - q_len :], value[..., :value_dim]
    sinks, starts = torch.tensor([-3.3, 0.7, 2.9, 11.3]), [0, 37, 250]
    out = s2o_attention(query, key, value, config or S2OConfig(tau=0), starts=starts, sinks=sinks)
    for row, start in enumerate(starts):
        padded = max(0, start - (LENGTH - q_len))
        wanted = softmax_with_sinks(query[row, :, padded:], key[row], value[row], sinks, start)
        torch.testing.assert_close(out[row, :, padded:].double(), wanted, rtol=tolerance, atol=tolerance)
        assert (out[row, :, :padded] == 0).all()


def test_sinks_learn(heads):
    query, key, value = (x[:1, :, :20] for x in heads)
    sinks = torch.tensor([-1.0, 0.0, 1.0, 2.0], requires_grad=True)
    s2o_attention(query, key, value, SPARSE, sinks=sinks).square().sum().backward()
    wanted = sinks.detach().double().requires_grad_()
    softmax_with_sinks(query[0], key[0], value[0], wanted, 0).square().sum().backward()
    torch.testing.assert_close(sinks.grad.double(), wanted.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sinks", [torch.zeros(2), torch.zeros(1, 4), torch.zeros(4, dtype=torch.int64)])
def test_sinks_that_do_not_fit_are_named(heads, sinks):
    with pytest.raises(ValueError, match=r"each of 4 query heads on cpu has one floating logit"):
        s2o_attention(*heads, sinks=sinks)


def test_fewer_queries_than_a_segment_run_dense(heads):
    query, key, value = heads
    _, stats = causal_attention(query[:, :, -SPARSE.segment + 1 :], key, value, SparsePrefill(SPARSE))
    assert stats.density == 1


@pytest.mark.parametrize("q_len", [0, 1, 2, DENSE_ROWS - 1, DENSE_ROWS, DENSE_ROWS + 1, 2 * DENSE_ROWS + 7])
def test_dense_queries_may_be_the_end_of_a_longer_cache(q_len):
    rng = torch.Generator().manual_seed(1)
    kv_len = 2 * DENSE_ROWS + 100
    query = torch.randn(1, 2, kv_len, 64, generator=rng)
    key, value = torch.randn(2, 1, 1, kv_len, 64, generator=rng)
    whole = s2o_attention(query, key, value, S2OConfig(tau=0.0))
    end = s2o_attention(query[:, :, kv_len - q_len :], key, value, S2OConfig(tau=0.0))
    torch.testing.assert_close(end, whole[:, :, kv_len - q_len :], rtol=1e-5, atol=1e-5)


def test_dense_values_may_have_their_own_head_dim(heads):
    query, key, value = heads
    out = s2o_attention(query, key, value[..., :48], S2OConfig(tau=0.0))
    torch.testing.assert_close(out, s2o_attention(query, key, value, S2OConfig(tau=0.0))[..., :48])


def test_scale_defaults_to_the_head_dims(heads):
    assert torch.equal(s2o_attention(*heads, SPARSE), s2o_attention(*heads, SPARSE, scale=0.125))
    assert not torch.equal(s2o_attention(*heads, SPARSE), s2o_attention(*heads, SPARSE, scale=0.25))


def test_inputs_that_need_a_gradient_run_dense(heads):
    query, key, value = heads
    key = key.clone().requires_grad_()
    out, stats = causal_attention(query, key, value, SparsePrefill(SPARSE))
    out.sum().backward()
    assert stats.density == 1
    assert key.grad is not None
    with torch.no_grad():
        assert causal_attention(query, key, value, SparsePrefill(SPARSE))[1].density < 1


def test_inputs_are_left_alone(heads):
    before = [x.clone() for x in heads]
    s2o_attention(*heads, SPARSE)
    assert all(torch.equal(x, y) for x, y in zip(heads, before, strict=True))


def zeros(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(*shape, dtype=dtype, device=device)


@pytest.mark.parametrize(
    "query, key, value, message",
    [
        (zeros(4, 9, 8), zeros(1, 2, 9, 8), zeros(1, 2, 9, 8), r"query has shape \(4, 9, 8\), 3 dimensions"),
        (zeros(1, 4, 9, 8, dtype=torch.int64), zeros(1, 2, 9, 8), zeros(1, 2, 9, 8), "query is torch.int64"),
        (zeros(1, 4, 9, 8, dtype=torch.bfloat16), zeros(1, 2, 9, 8), zeros(1, 2, 9, 8), "query torch.bfloat16 on cpu"),
        (zeros(1, 4, 9, 8, device="meta"), zeros(1, 2, 9, 8), zeros(1, 2, 9, 8), "on meta"),
        (zeros(2, 4, 9, 8), zeros(1, 2, 9, 8), zeros(1, 2, 9, 8), "Batch, KV heads and kv_len must agree"),
        (zeros(1, 4, 9, 8), zeros(1, 2, 9, 8), zeros(1, 2, 7, 8), "Batch, KV heads and kv_len must agree"),
        (zeros(1, 4, 9, 8), zeros(1, 2, 9, 16), zeros(1, 2, 9, 8), "head_dim is 8 in query and 16 in key"),
        (zeros(1, 3, 9, 8), zeros(1, 2, 9, 8), zeros(1, 2, 9, 8), "3 query heads cannot share 2 KV heads"),
        (zeros(1, 4, 9, 8), zeros(1, 2, 5, 8), zeros(1, 2, 5, 8), "q_len=9 is above kv_len=5"),
    ],
)
def test_inputs_that_do_not_fit_are_named(query, key, value, message):
    with pytest.raises(ValueError, match=message):
        s2o_attention(query, key, value)


@pytest.mark.parametrize("starts", [[0, 1], [-1], [10]])
def test_starts_are_one_key_index_a_row(starts):
    with pytest.raises(ValueError, match="must hold one key index from 0 to kv_len=9"):
        s2o_attention(zeros(1, 4, 9, 8), zeros(1, 2, 9, 8), zeros(1, 2, 9, 8), starts=starts)
