"""InnerQ's CPU kernels against the reference: the same attention, and the same bits."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_infeco.kernels.innerq import cpu, reference
from hf_infeco.kernels.innerq.cpu_floats import from_half, to_half
from hf_infeco.kernels.innerq.reference import GROUP, Packed, PackedKV

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_packed(batch, kv_heads, tiles, head_dim, value_dim, key_bits=3, value_bits=3, hybrid=False) -> PackedKV:
    key = normal(batch, kv_heads, tiles * GROUP, head_dim) + normal(batch, kv_heads, 1, head_dim, seed=2)
    key, value = reference.fill_groups(key), normal(batch, kv_heads, tiles * GROUP, value_dim, seed=1) + 0.5
    mean = reference.channel_mean(key)
    norm = reference.channel_norm(key, mean)
    return PackedKV(
        reference.quantize_keys(key, key_bits, norm, mean),
        reference.quantize_values(value, value_bits, hybrid),
        norm,
        mean,
    )


def windows(packed: PackedKV, sinks=7, recent=41, dtype=torch.float32, head_dim: int | None = None):
    batch, heads, _, groups, _, _ = packed.key.words.shape
    dims = head_dim or groups * GROUP, packed.value.words.shape[-1]
    return [tuple(normal(batch, heads, n, dim, seed=n).to(dtype) for dim in dims) for n in (sinks, recent)]


def padding(batch: int, tokens: int, hidden: int = 50) -> torch.Tensor:
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    mask[-1, :hidden] = False
    return mask


def check(query, packed, exact, key_mask=None, **others):
    expected = reference.packed_attention(query, packed, exact, scale=0.2, key_mask=key_mask, **others)
    got = cpu.packed_attention(query, packed, exact, scale=0.2, key_mask=key_mask, **others)
    assert got.dtype == query.dtype
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(
    "head_dim, value_dim, ratio, q_len, bits, hybrid, dtype, padded",
    [
        (128, 128, 1, 1, (3, 3), False, torch.float32, False),
        (128, 128, 4, 1, (3, 3), False, torch.bfloat16, False),
        (64, 64, 4, 1, (3, 3), False, torch.bfloat16, True),
        (256, 256, 8, 1, (3, 2), True, torch.float16, True),
        (96, 80, 3, 5, (3, 2), True, torch.float16, True),
        (80, 80, 3, 2, (4, 3), False, torch.bfloat16, True),  # channels that do not fill a group
        (64, 64, 2, 1, (2, 4), False, torch.float32, True),
        (128, 128, 4, 32, (4, 3), False, torch.float32, False),
        (64, 72, 1, 1, (3, 3), False, torch.float32, False),  # lanes that do not fill a vector
    ],
)
@pytest.mark.parametrize("tiles", [1, 16, 17, 37])
def test_attention_is_that_of_the_reference(
    head_dim, value_dim, ratio, q_len, bits, hybrid, dtype, padded, tiles, one_thread
):
    packed = make_packed(2, 2, tiles, head_dim, value_dim, *bits, hybrid)
    query = normal(2, 2 * ratio, q_len, head_dim, seed=3)
    mask = padding(2, 48 + tiles * GROUP) if padded else None
    check(query, packed, windows(packed, dtype=dtype, head_dim=head_dim), mask)


@pytest.mark.parametrize("sinks, softcap", [(True, None), (False, 2.0), (True, 30.0)])
@pytest.mark.parametrize("q_len, value_dim", [(1, 64), (5, 64), (1, 72)])
def test_learned_sinks_and_capped_logits_are_those_of_the_reference(sinks, softcap, q_len, value_dim, one_thread):
    packed = make_packed(2, 2, 17, 64, value_dim)
    learned = normal(6, seed=4).bfloat16() * 3 if sinks else None
    mask = padding(2, 48 + packed.num_slots)
    check(normal(2, 6, q_len, 64, seed=3) * 5, packed, windows(packed), mask, sinks=learned, softcap=softcap)


@pytest.mark.parametrize("width", [1, GROUP])
def test_values_are_multiplied_by_the_norm_of_their_token_or_tile(packed, query, width):
    norm = normal(2, 2, packed.num_slots // GROUP + 1, width, seed=5).abs().add(0.1).bfloat16()[:, :, :-1]
    norm[1, 0, 3], norm[0, 1, -1] = 2.0**20, 4
    scaled = replace(packed, value_norm=norm)
    check(query, scaled, windows(packed))
    for got, plain in zip(cpu.dequantize(scaled), reference.dequantize(scaled), strict=True):
        assert torch.equal(got, plain)


@pytest.mark.parametrize("head_dim, q_len", [(64, 1), (80, 3)])
def test_rotated_keys_are_asked_by_rotated_queries(head_dim, q_len, one_thread):
    packed = replace(make_packed(2, 2, 17, head_dim, 64), is_rotated=True)
    check(normal(2, 6, q_len, head_dim, seed=3), packed, windows(packed, head_dim=head_dim))
    for got, plain in zip(cpu.dequantize(packed), reference.dequantize(packed), strict=True):
        torch.testing.assert_close(got, plain, rtol=1e-6, atol=1e-6)


def test_logits_far_beyond_the_cap_are_the_cap(packed, query):
    check(query * 1e4, packed, windows(packed), softcap=3.0)


@pytest.fixture(scope="module")
def packed() -> PackedKV:
    return make_packed(2, 2, 40, 64, 64)


@pytest.fixture(scope="module")
def query() -> torch.Tensor:
    return normal(2, 8, 1, 64, seed=3)


def test_more_queries_than_fit_any_window_are_causal_among_themselves(packed):
    check(normal(2, 8, 41, 64, seed=3), packed, windows(packed), padding(2, 48 + packed.num_slots))


def test_without_sinks_or_padding_inside_dead_slots(packed, query):
    alive = torch.ones(packed.num_slots, dtype=torch.bool)
    alive[20:40] = alive[512:1100] = False  # a whole chunk of dead slots, and more
    holed = replace(packed, alive=alive)
    check(query, holed, windows(packed, sinks=0))
    check(query, holed, windows(packed), padding(2, 48 + int(alive.sum())))


def test_a_view_of_a_buffer_with_spare_room_is_read_in_place(packed, query, monkeypatch):
    def part(of: Packed) -> Packed:
        padded = (torch.cat([t, t], 2)[:, :, : packed.num_slots // GROUP] for t in of if t is not None)
        return Packed(*padded, None)

    view = replace(packed, key=part(packed.key), value=part(packed.value))
    assert not view.key.words.is_contiguous()
    exact = windows(packed)
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda tensor: tensor)  # a copy would need it
    expected = cpu.packed_attention(query, packed, exact, scale=0.2)
    assert torch.equal(cpu.packed_attention(query, view, exact, scale=0.2), expected)


def test_a_row_that_sees_no_key_is_zero(packed, query):
    mask = padding(2, 48 + packed.num_slots, hidden=48 + packed.num_slots)
    out = cpu.packed_attention(query, packed, windows(packed), scale=0.2, key_mask=mask)
    assert (out[1] == 0).all() and torch.isfinite(out[0]).all()


def test_what_a_hidden_token_holds_is_not_read(packed, query):
    mask, exact = padding(2, 48 + packed.num_slots), windows(packed)
    expected = cpu.packed_attention(query, packed, exact, scale=0.2, key_mask=mask)
    exact[0][0][1, :, :5] = float("nan")
    exact[0][1][1, :, :5] = float("inf")
    assert torch.equal(cpu.packed_attention(query, packed, exact, scale=0.2, key_mask=mask), expected)


def test_nan_stays_in_its_row(packed, query):
    expected = cpu.packed_attention(query, packed, windows(packed), scale=0.2)
    broken = query.clone()
    broken[0, 3, 0, 5] = float("nan")
    out = cpu.packed_attention(broken, packed, windows(packed), scale=0.2)
    assert out[0, 3].isnan().all()
    assert torch.equal(out[0, :3], expected[0, :3]) and torch.equal(out[1], expected[1])


def attend_with(threads: int, query: torch.Tensor, packed: PackedKV) -> torch.Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return cpu.packed_attention(query, packed, windows(packed), scale=0.2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_work_and_change_only_the_rounding(packed, query, threads, monkeypatch):
    monkeypatch.setattr(cpu, "MIN_TOKENS", 1)
    torch.testing.assert_close(
        attend_with(threads, query, packed), attend_with(1, query, packed), rtol=1e-5, atol=1e-6
    )


def test_several_callers_at_once_get_their_own_results(packed, query, monkeypatch):
    monkeypatch.setattr(cpu, "MIN_TOKENS", 1)
    queries = [query * factor for factor in range(1, 9)]
    before = torch.get_num_threads()
    torch.set_num_threads(2)

    def attend(each: torch.Tensor) -> torch.Tensor:
        return cpu.packed_attention(each, packed, windows(packed), scale=0.2)

    try:
        expected = [attend(each) for each in queries]
        with ThreadPoolExecutor(4) as callers:
            for _ in range(5):
                assert all(map(torch.equal, callers.map(attend, queries), expected))
    finally:
        torch.set_num_threads(before)


def send_sum(connection, query, packed) -> None:
    cpu.MIN_TOKENS = 1
    connection.send(attend_with(2, query, packed).sum().item())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_forked_child_makes_threads_of_its_own(packed, query, monkeypatch):
    monkeypatch.setattr(cpu, "MIN_TOKENS", 1)
    expected = attend_with(2, query, packed).sum().item()
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=send_sum, args=(theirs, query, packed))
    child.start()
    try:
        assert ours.poll(60) and ours.recv() == pytest.approx(expected, abs=1e-3)
    finally:
        child.terminate()
        child.join()


# ---------------------------------------------------------------- quantization


def assert_same_bits(got: Packed, expected: Packed) -> None:
    assert (got.zero is None) == (expected.zero is None)
    for one, other in zip(got, expected, strict=True):
        if one is not None:
            assert one.dtype == other.dtype and one.shape == other.shape
            bits = torch.int32 if one.dtype == torch.int32 else torch.int16
            assert torch.equal(one.view(bits), other.view(bits))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_quantizer_makes_the_bits_of_the_reference(dtype, bits):
    key, value = (normal(2, 2, 3 * GROUP, 96, seed=seed) for seed in (1, 2))
    # From numbers that float16 hardly knows to those it saturates at, with silent tokens and channels.
    spread = torch.logspace(-9, 4, 96)
    key, value = key * spread, value * spread.flip(0)
    key[0, 0, 5], value[..., 7] = 0, 0
    key, value = key.to(dtype)[:, :, GROUP:], value.to(dtype)[:, :, GROUP:]  # slices, as the layer gives
    mean = reference.channel_mean(key)
    norm = reference.channel_norm(key, mean)
    for taken in ((), (norm,), (None, mean), (norm, mean)):
        assert_same_bits(cpu.quantize_keys(key, bits, *taken), reference.quantize_keys(key, bits, *taken))
    for hybrid, by_token in ((False, False), (True, False), (True, True), (False, True)):
        value_norm = reference.value_norms(value, by_token)
        expected = reference.quantize_values(value, bits, hybrid, value_norm)
        assert_same_bits(cpu.quantize_values(value, bits, hybrid, value_norm), expected)
        packed = PackedKV(reference.quantize_keys(key, bits, norm, mean), expected, norm, mean, None, value_norm)
        for got, plain in zip(cpu.dequantize(packed), reference.dequantize(packed), strict=True):
            assert torch.equal(got, plain)


def test_lanes_that_do_not_fill_a_vector_are_quantized_too():
    value = normal(1, 2, GROUP, 72)
    assert_same_bits(cpu.quantize_values(value, 3), reference.quantize_values(value, 3))


def test_dequantizing_skips_dead_slots(packed):
    alive = torch.arange(packed.num_slots) % 3 > 0
    holed = replace(packed, alive=alive)
    for got, plain in zip(cpu.dequantize(holed), reference.dequantize(holed), strict=True):
        assert torch.equal(got, plain)


def test_every_float16_survives_the_way_there_and_back():
    halves = np.arange(-(2**15), 2**15).astype(np.int16)
    numbers = torch.from_numpy(halves).view(torch.float16).float().numpy()
    finite = np.isfinite(numbers)
    assert all(from_half(half) == number for half, number in zip(halves[finite], numbers[finite], strict=True))
    assert all(to_half(number) == half for half, number in zip(halves[finite], numbers[finite], strict=True))


def test_rounding_to_float16_is_that_of_torch():
    numbers = torch.cat([normal(5000) * scale for scale in (1e-8, 1e-5, 1, 1e4)])
    numbers = torch.cat([numbers, torch.tensor([2.0**-25, 3 * 2.0**-25, 1 + 2.0**-11, 1 + 3 * 2.0**-11])])  # ties
    expected = numbers.half().view(torch.int16).tolist()
    assert [to_half(number) for number in numbers.numpy()] == expected
    assert np.isnan(from_half(to_half(np.float32("nan"))))
