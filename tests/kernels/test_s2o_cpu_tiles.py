"""Tiles of rows on a CPU compute what the reference does with `tile=TILE`: by AMX where there is one, and in loops."""

import functools

import pytest
import torch

from hf_infeco.kernels.s2o import cpu
from hf_infeco.kernels.s2o.cpu_tiles import TILE, has_amx

from . import s2o_cases
from .s2o_cases import attend, check_far_past, crowded_case, sharp_case

SEGMENT, GRANULE = 128, 32

pytestmark = pytest.mark.usefixtures("one_thread", "one_cut")

make_case = functools.partial(s2o_cases.make_case, dtype=torch.bfloat16)
prefill = functools.partial(cpu.s2o_prefill, tile=TILE)


@pytest.fixture(autouse=True, params=["in loops", "by AMX"])
def products(request, monkeypatch):
    if request.param == "in loops":
        monkeypatch.setattr(cpu, "has_amx", lambda: False)
    elif not has_amx():
        pytest.skip("this processor has no AMX")


def run(query, key, value, tau, **settings):
    settings = {"segment": SEGMENT, "granule": GRANULE} | settings
    out, stats = attend(prefill, query, key, value, tau=tau, **settings)
    assert out.dtype == query.dtype and out.shape == (*query.shape[:3], value.shape[3])
    return out.float(), stats


check_exact = functools.partial(s2o_cases.check_exact, run)
check_like_reference = functools.partial(
    s2o_cases.check_like_reference, run, {"tile": TILE, "ordered": False}, segment=SEGMENT, granule=GRANULE
)


SHAPES = [
    dict(length=400, head_dim=64, ratio=1, batch=2, kv_heads=2),
    dict(length=270, head_dim=80, ratio=2),
    dict(length=400, head_dim=96, value_dim=64, ratio=3),
    dict(length=400, head_dim=64, value_dim=48, ratio=4),
    dict(length=270, head_dim=128, ratio=8),
    dict(length=270, head_dim=256, ratio=2),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tau_zero_is_dense_for_every_head_shape(shape):
    check_exact(*make_case(**shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_left_out_is_what_the_reference_leaves_out(shape):
    check_like_reference(*make_case(**shape))


@pytest.mark.parametrize("length", [1, 2, 7, 31, 33, SEGMENT - 1, SEGMENT, SEGMENT + 1, 197, 5 * SEGMENT])
def test_tau_zero_is_dense_at_every_length(length):
    check_exact(*make_case(length))


@pytest.mark.parametrize("q_len, kv_len", [(1, 400), (5, 261), (SEGMENT, 400), (SEGMENT, 384), (SEGMENT + 1, 399)])
def test_queries_may_be_the_end_of_a_longer_cache(q_len, kv_len):
    case = make_case(kv_len, q_len=q_len, kv_heads=2)
    check_exact(*case)
    check_like_reference(*case)


@pytest.mark.parametrize(
    "settings",
    [{"compensate": False}, {"target_mass": 0.98}, {"segment": 512}, {"segment": 1024}, {"segment": 32}],
    ids=str,
)
def test_every_setting_is_the_reference_s(settings):
    check_like_reference(*make_case(2 * settings.get("segment", 300) + 70), **settings)


@pytest.mark.parametrize("sink", [-30.0, 3.0, 30.0])
def test_a_sink_joins_the_softmax_of_its_head(sink):
    case = make_case(400, ratio=2, kv_heads=2, batch=2)
    sinks = torch.tensor([sink, 0.0, 1.0, 2.0])
    check_exact(*case, sinks=sinks)
    check_like_reference(*case, sinks=sinks)


@pytest.mark.parametrize("target_mass", [None, 0.999])
def test_every_row_visits_what_is_scattered(target_mass):
    case = crowded_case(SEGMENT, GRANULE, dtype=torch.bfloat16)
    check_like_reference(*case, tau=0.9, target_mass=target_mass)


@pytest.mark.parametrize("target_mass", [None, 0.99])
@pytest.mark.parametrize("spread", [4, 8])
def test_sharp_attention_is_judged_like_the_reference(spread, target_mass):
    case = sharp_case(600, spread, dtype=torch.bfloat16)
    check_like_reference(*case, tau=0.5, target_mass=target_mass)


def test_transposed_inputs_give_the_same():
    case = make_case(400, kv_heads=2, batch=2)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in case]
    assert torch.equal(run(*case, 0.1)[0], run(*strided, 0.1)[0])


def test_a_past_far_above_a_row_s_own_key_does_not_overflow():
    """Weights are relative to the row's own key, which here weighs exp(-200) of what an earlier one does."""
    query, key, value = make_case(400, kv_heads=1)
    key[..., SEGMENT:, :] *= 0.01
    key[..., 5, :] = query[0, 0, -1] * 4
    check_exact(query * 3, key * 3, value, tolerance=4e-2)


@pytest.mark.parametrize("compensate", [True, False])
def test_an_unvisited_past_far_above_the_near_keys_does_not_overflow(compensate):
    check_far_past(prefill, 64, GRANULE, compensate, s2o_cases.ROUNDING[torch.bfloat16])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same(threads):
    case = make_case(600, kv_heads=2)
    expected = run(*case, 0.1)[0]
    torch.set_num_threads(threads)
    try:
        assert torch.equal(run(*case, 0.1)[0], expected)
    finally:
        torch.set_num_threads(1)


def test_torch_multiplies_on_amx_after_tiles_as_before():
    left, right = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    product = left @ right
    run(*make_case(300), 0.1)
    assert torch.equal(left @ right, product)


def test_a_nan_stays_one():
    query, key, value = make_case(400)
    value[..., 300, :] = torch.nan
    out, _ = run(query, key, value, 0.0)
    assert out[..., 320:, :].isnan().all() and out[..., : 2 * SEGMENT, :].isfinite().all()
    query, key, value = make_case(400)
    key[..., 10, :] = torch.nan
    out, _ = run(query, key, value, 0.1)
    assert out[..., 32:, :].isnan().all()


def test_tiles_are_what_runs_on_bfloat16_where_there_is_amx():
    query, key, value = make_case(400)
    settings = dict(scale=0.125, tau=0.1, segment=SEGMENT, granule=GRANULE)

    def chosen_is(tile, dtype, **changes):
        case = [x.to(dtype) for x in (query, key, value)]
        out, wanted = (attend(cpu.s2o_prefill, *case, **(settings | changes), tile=t)[0] for t in (None, tile))
        return torch.equal(out, wanted)

    assert chosen_is(TILE if cpu.has_amx() else 1, torch.bfloat16)
    assert chosen_is(1, torch.bfloat16, granule=16)
    assert chosen_is(1, torch.float32)
