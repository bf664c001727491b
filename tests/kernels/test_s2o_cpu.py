"""S2O's CPU kernel computes what the reference does."""

import functools

import pytest
import torch

from hf_infeco.kernels.s2o import cpu

from . import s2o_cases
from .s2o_cases import attend, check_far_past, crowded_case, make_case, sharp_case

SEGMENT, GRANULE = 64, 16

pytestmark = pytest.mark.usefixtures("one_thread", "one_cut")


def run(query, key, value, tau, **settings):
    settings = {"segment": SEGMENT, "granule": GRANULE} | settings
    out, stats = attend(cpu.s2o_prefill, query, key, value, tau=tau, **settings)
    assert out.dtype == query.dtype and out.shape == (*query.shape[:3], value.shape[3])
    return out.float(), stats


check_exact = functools.partial(s2o_cases.check_exact, run)
check_like_reference = functools.partial(s2o_cases.check_like_reference, run, {}, segment=SEGMENT, granule=GRANULE)


SHAPES = [
    dict(length=200, head_dim=64, ratio=1, batch=2, kv_heads=2),
    dict(length=170, head_dim=80, ratio=2, dtype=torch.float16),
    dict(length=200, head_dim=96, value_dim=64, ratio=3),
    dict(length=200, head_dim=64, value_dim=48, ratio=4, dtype=torch.bfloat16),
    dict(length=150, head_dim=128, ratio=8),
    dict(length=170, head_dim=256, ratio=2, dtype=torch.bfloat16),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tau_zero_is_dense_for_every_head_shape(shape):
    check_exact(*make_case(**shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_left_out_is_what_the_reference_leaves_out(shape):
    check_like_reference(*make_case(**shape))


@pytest.mark.parametrize("length", [1, 2, 7, SEGMENT - 1, SEGMENT, SEGMENT + 1, 97, 3 * SEGMENT])
def test_tau_zero_is_dense_at_every_length(length):
    check_exact(*make_case(length))


@pytest.mark.parametrize("q_len, kv_len", [(1, 200), (5, 131), (SEGMENT, 200), (SEGMENT, 192), (SEGMENT + 1, 199)])
def test_queries_may_be_the_end_of_a_longer_cache(q_len, kv_len):
    case = make_case(kv_len, q_len=q_len, kv_heads=2)
    check_exact(*case)
    check_like_reference(*case)


@pytest.mark.parametrize(
    "settings",
    [{"compensate": False}, {"target_mass": 0.98}, {"granule": 32, "segment": 128}, {"segment": 32}, {"segment": 16}],
    ids=str,
)
def test_every_setting_is_the_reference_s(settings):
    check_like_reference(*make_case(300, ratio=4), **settings)


@pytest.mark.parametrize("sink", [-30.0, 3.0, 30.0])
def test_a_sink_joins_the_softmax_of_its_head(sink):
    case = make_case(200, ratio=2, kv_heads=2, batch=2)
    sinks = torch.tensor([sink, 0.0, 1.0, 2.0])
    check_exact(*case, sinks=sinks)
    check_like_reference(*case, sinks=sinks)


@pytest.mark.parametrize("target_mass", [None, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_row_visits_what_is_scattered(dtype, target_mass):
    check_like_reference(*crowded_case(SEGMENT, GRANULE, dtype=dtype), tau=0.9, target_mass=target_mass)


@pytest.mark.parametrize("target_mass", [None, 0.99])
@pytest.mark.parametrize("spread", [4, 8])
def test_sharp_attention_is_judged_like_the_reference(spread, target_mass):
    check_like_reference(*sharp_case(300, spread), tau=0.5, target_mass=target_mass)


def test_transposed_inputs_give_the_same():
    """Models hand over `[B, L, H, D]` tensors transposed, so nothing here is contiguous."""
    case = make_case(200, kv_heads=2, batch=2)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in case]
    assert torch.equal(run(*case, 0.1)[0], run(*strided, 0.1)[0])


def test_huge_logits_do_not_overflow():
    query, key, value = make_case(200)
    check_exact(query * 10, key * 10, value, tolerance=1e-3)


def test_a_past_far_above_the_near_keys_does_not_overflow():
    """The row's own segment weighs exp(-200) of what an earlier key does: sums relative to it would be infinite."""
    query, key, value = make_case(200, kv_heads=1)
    key[..., SEGMENT:, :] *= 0.01
    key[..., 5, :] = query[0, 0, -1] * 4
    check_exact(query * 3, key * 3, value, tolerance=1e-3)


@pytest.mark.parametrize("compensate", [True, False])
def test_an_unvisited_past_far_above_the_near_keys_does_not_overflow(compensate):
    check_far_past(cpu.s2o_prefill, SEGMENT, GRANULE, compensate)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same(threads):
    case = make_case(300, kv_heads=2)
    expected = run(*case, 0.1)[0]
    torch.set_num_threads(threads)
    try:
        assert torch.equal(run(*case, 0.1)[0], expected)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)


def test_a_nan_stays_one():
    query, key, value = make_case(200)
    value[..., 150, :] = torch.nan
    out, _ = run(query, key, value, 0.0)
    assert out[..., 160:, :].isnan().all() and out[..., :128, :].isfinite().all()
