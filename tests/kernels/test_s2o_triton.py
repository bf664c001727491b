"""S2O's Triton kernel computes what the reference does: in Triton's interpreter, or on the GPU where there is one."""

import functools

import pytest
import torch

from hf_infeco.kernels.pairs import count_causal_pairs
from hf_infeco.kernels.s2o import reference

from . import s2o_cases
from .s2o_cases import attend, check_far_past, crowded_case, dense, distance, half_visited, sharp_case

triton = pytest.importorskip("triton", reason="triton is not installed")
kernels = pytest.importorskip("hf_infeco.kernels.s2o.triton")

IS_INTERPRETED = triton.knobs.runtime.interpret
CPU = pytest.param("cpu", marks=pytest.mark.skipif(not IS_INTERPRETED, reason="needs TRITON_INTERPRET=1"))

SEGMENT, GRANULE = 64, 8
# Exact products show wrong numbers best, but only the interpreter takes float32.
DTYPE = torch.float32 if IS_INTERPRETED else torch.float16
LOSSY = 0.1  # any tau above 0

pytestmark = pytest.mark.usefixtures("one_thread")


make_case = functools.partial(s2o_cases.make_case, dtype=DTYPE)


@pytest.fixture(params=[CPU, pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    return request.param


def run(device, query, key, value, tau, **settings):
    settings = {"segment": SEGMENT, "granule": GRANULE} | settings
    inputs = (x.to(device) for x in (query, key, value))
    out, stats = attend(kernels.s2o_prefill, *inputs, tau=tau, **settings)
    assert out.dtype == query.dtype and out.shape == (*query.shape[:3], value.shape[3])
    return out.float().cpu(), stats


def check_exact(device, query, key, value, tolerance=None, **settings):
    """At tau = 0 all is visited."""
    tolerance = tolerance or (1e-5 if query.dtype == torch.float32 else 2e-3)
    out, stats = run(device, query, key, value, 0.0, **settings)
    expected = dense(query, key, value, settings.get("sinks"))
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
    pairs = query.shape[0] * query.shape[1] * count_causal_pairs(query.shape[2], key.shape[2])
    assert int(stats.visited_pairs) == stats.causal_pairs == pairs
    assert float(stats.missed_mass) == 0


def check_like_reference(device, query, key, value, tau=None, **settings):
    """
    Far nearer to the reference than that is to dense attention, at `tau` or where about half is visited; returns the
    reference's stats. On a GPU, where a sum's order is another, a tile whose promise is within rounding of the
    threshold may decide otherwise, and half precision may be all that tells the outputs apart.
    """
    settings = {"segment": SEGMENT, "granule": GRANULE, "tile": 64} | settings
    if tau is None:
        tau, expected, wanted = half_visited(query, key, value, **settings)
    else:
        expected, wanted = attend(reference.s2o_prefill, query, key, value, tau=tau, **settings)
    left_out = distance(expected, dense(query, key, value, settings.get("sinks")))
    rounding = 2e-5 if query.dtype == torch.float32 else 5e-4
    out, stats = run(device, query, key, value, tau, **settings)
    assert distance(out, expected) < (
        min(rounding, max(left_out / 3, 2e-6)) if device == "cpu" else max(2e-3, left_out / 3)
    )
    assert int(stats.visited_pairs) == pytest.approx(wanted.visited_pairs, rel=1e-5 if device == "cpu" else 2e-2)
    assert float(stats.missed_mass) == pytest.approx(wanted.missed_mass, rel=1e-3 if device == "cpu" else 0.1)
    assert (stats.causal_pairs, stats.rows) == (wanted.causal_pairs, wanted.rows)
    return wanted


SHAPES = [
    dict(length=200, head_dim=64, ratio=1, batch=2, kv_heads=2),
    dict(length=170, head_dim=80, ratio=2, dtype=torch.float16),
    dict(length=200, head_dim=96, value_dim=64, ratio=3),
    dict(length=200, head_dim=64, value_dim=48, ratio=4, dtype=torch.float16),
    dict(length=150, head_dim=128, ratio=8),
    dict(length=170, head_dim=256, ratio=2, dtype=torch.float16),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tau_zero_is_dense_for_every_head_shape(device, shape):
    check_exact(device, *make_case(**shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_left_out_is_what_the_reference_leaves_out(device, shape):
    check_like_reference(device, *make_case(**shape))


@pytest.mark.parametrize("length", [1, 7, SEGMENT - 1, SEGMENT, SEGMENT + 1, 97, 3 * SEGMENT])
def test_tau_zero_is_dense_at_every_length(device, length):
    check_exact(device, *make_case(length))


@pytest.mark.parametrize("q_len, kv_len", [(1, 200), (5, 131), (SEGMENT, 200), (SEGMENT, 192), (SEGMENT + 1, 199)])
def test_queries_may_be_the_end_of_a_longer_cache(device, q_len, kv_len):
    case = make_case(kv_len, q_len=q_len, kv_heads=2)
    check_exact(device, *case)
    check_like_reference(device, *case)


@pytest.mark.parametrize(
    "settings",
    [
        {"compensate": False},
        {"tile": 16},
        {"tile": 128},
        {"granule": 4},
        {"granule": 32, "segment": 128},
        {"segment": 32, "granule": 16},
    ],
    ids=str,
)
def test_every_setting_is_the_reference_s(device, settings):
    check_like_reference(device, *make_case(300, ratio=4), **settings)


@pytest.mark.parametrize("sink", [-30.0, 3.0, 30.0])
def test_a_sink_joins_the_softmax_of_its_head(device, sink):
    case = make_case(200, ratio=2, kv_heads=2, batch=2)
    sinks = torch.tensor([sink, 0.0, 1.0, 2.0])
    check_exact(device, *case, sinks=sinks)
    check_like_reference(device, *case, sinks=sinks)


@pytest.mark.parametrize("target_mass", [None, 0.999])
def test_every_tile_visits_what_is_scattered(device, target_mass):
    check_like_reference(device, *crowded_case(SEGMENT, GRANULE, dtype=DTYPE), tau=0.9, target_mass=target_mass)


@pytest.mark.parametrize("target_mass", [None, 0.99])
def test_sharp_attention_is_judged_like_the_reference(device, target_mass):
    check_like_reference(device, *sharp_case(300, 4, dtype=DTYPE), tau=0.5, target_mass=target_mass)


@pytest.mark.parametrize(
    "shape, settings",
    [
        (dict(length=300, ratio=4), {}),
        (dict(length=300, q_len=170, ratio=3, kv_heads=2), {}),
        (dict(length=250, head_dim=96, value_dim=64), {"tile": 16}),
        (dict(length=200, ratio=8, batch=2, dtype=torch.float16), {"compensate": False}),
        (dict(length=4400, q_len=40), {"granule": 4}),
    ],
    ids=str,
)
def test_target_mass_is_reached_as_in_the_reference(device, shape, settings):
    case = make_case(**shape)
    by_tau, loose, tight = (
        check_like_reference(device, *case, tau=0.9, target_mass=target, **settings) for target in (None, 0.1, 0.999)
    )
    assert loose == by_tau
    assert tight.missed <= 0.001 and tight.visited_pairs > 1.5 * by_tau.visited_pairs


@pytest.mark.parametrize("launched", [1, 70, 2**20])
def test_any_number_of_launches_gives_the_same(device, monkeypatch, launched):
    case = make_case(200, kv_heads=2)
    expected, _ = run(device, *case, LOSSY, target_mass=0.99)
    monkeypatch.setattr(kernels, "LISTED_AT_ONCE", launched)
    assert torch.equal(run(device, *case, LOSSY, target_mass=0.99)[0], expected)


def test_rows_are_ordered_the_same_in_parts(device, monkeypatch):
    case = make_case(200, kv_heads=2)
    expected, _ = run(device, *case, LOSSY)
    monkeypatch.setattr(kernels, "ORDERED_AT_ONCE", 1)
    torch.testing.assert_close(run(device, *case, LOSSY)[0], expected)


def test_transposed_inputs_give_the_same(device):
    """Models hand over `[B, L, H, D]` tensors transposed, so nothing here is contiguous."""
    case = make_case(200, kv_heads=2, batch=2)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in case]
    assert torch.equal(run(device, *case, LOSSY)[0], run(device, *strided, LOSSY)[0])


def test_huge_logits_do_not_overflow(device):
    query, key, value = make_case(200)
    check_exact(device, query * 10, key * 10, value, tolerance=2e-3)


@pytest.mark.skipif(not IS_INTERPRETED, reason="in float32")
def test_an_unvisited_past_far_above_the_near_keys_does_not_overflow():
    check_far_past(kernels.s2o_prefill, SEGMENT, GRANULE, compensate=True)


def test_what_it_cannot_do_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match=r"up to head_dim 256, .* with head_dim 320"):
        run("cpu", *make_case(100, head_dim=320), LOSSY)
    with pytest.raises(ValueError, match=r"granule=12"):
        run("cpu", *make_case(100), LOSSY, granule=12, segment=48)
    with pytest.raises(ValueError, match=r"tile=8"):
        run("cpu", *make_case(100), LOSSY, tile=8)


# The interpreter has no bfloat16 products, and nothing to wait for.
@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("tile", [64, 128])
def test_bfloat16_is_attended_like_the_reference(head_dim, tile):
    case = make_case(3000, head_dim=head_dim, ratio=4, kv_heads=2, dtype=torch.bfloat16)
    check_like_reference("cuda", *case, segment=512, granule=16, tile=tile)


@pytest.mark.gpu
def test_no_call_waits_for_the_device():
    case = [x.cuda() for x in make_case(300, dtype=torch.float16)]
    settings = dict(scale=0.1, tau=LOSSY, segment=SEGMENT, granule=GRANULE)
    attend(kernels.s2o_prefill, *case, **settings)  # what is compiled or looked up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend(kernels.s2o_prefill, *case, **settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
