"""
InnerQ's Triton kernels compute what the reference does: in Triton's interpreter, or on the GPU where there is one.
"""

from dataclasses import replace

import pytest
import torch

from hf_infeco.kernels.innerq import reference
from hf_infeco.kernels.innerq.reference import GROUP, Packed, PackedKV

triton = pytest.importorskip("triton", reason="triton is not installed")
kernels = pytest.importorskip("hf_infeco.kernels.innerq.triton")

IS_INTERPRETED = triton.knobs.runtime.interpret
CPU = pytest.param("cpu", marks=pytest.mark.skipif(not IS_INTERPRETED, reason="needs TRITON_INTERPRET=1"))


@pytest.fixture(params=[CPU, pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    return request.param


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def make_case(
    generator, *, head_dim, value_dim=None, ratio=1, q_len=1, bits=(3, 3), hybrid=False, tiles=3, sinks=7, recent=41
):
    """A query, packed tokens and two windows: batch 2, two KV heads, float16 where a model's own tensors are."""
    value_dim = value_dim or head_dim

    def random(tokens, dim):
        return torch.randn(2, 2, tokens, dim, generator=generator)

    key, value = random(tiles * GROUP, head_dim) + random(1, head_dim), random(tiles * GROUP, value_dim)
    key = reference.fill_groups(key)
    mean = reference.channel_mean(key)
    norm = reference.channel_norm(key, mean)
    packed = PackedKV(
        reference.quantize_keys(key, bits[0], norm, mean),
        reference.quantize_values(value, bits[1], hybrid),
        norm,
        mean,
    )
    exact = [(random(n, head_dim).half(), random(n, value_dim).half()) for n in (sinks, recent)]
    return random(ratio * q_len, head_dim).view(2, 2 * ratio, q_len, head_dim).half(), packed, exact


def padding(packed: PackedKV, exact, hidden: int) -> torch.Tensor:
    """A mask over living tokens that hides the first `hidden` ones of the second row."""
    living = packed.num_slots if packed.alive is None else int(packed.alive.sum())
    mask = torch.ones(2, exact[0][0].shape[2] + living + exact[1][0].shape[2], dtype=torch.bool)
    mask[1, :hidden] = False
    return mask


def move(value, device):
    """Tensors in tuples, lists and `PackedKV`s, moved."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, PackedKV):
        return PackedKV(**{name: move(part, device) for name, part in vars(value).items()})
    if isinstance(value, Packed):
        return Packed(*(move(part, device) for part in value))
    return [tuple(move(part, device) for part in pair) for pair in value] if isinstance(value, list) else value


def check(device, query, packed, exact, key_mask=None, tolerance=5e-3, **others):
    """Compares in float32 on the CPU; rounding to float16 is all that may differ."""
    expected = reference.packed_attention(query.float(), packed, exact, scale=0.2, key_mask=key_mask, **others)
    arguments = (move(argument, device) for argument in (query, packed, exact))
    others = {name: move(value, device) for name, value in others.items()}
    got = kernels.packed_attention(*arguments, scale=0.2, key_mask=move(key_mask, device), **others)
    assert got.dtype == query.dtype and got.shape == expected.shape
    torch.testing.assert_close(got.float().cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "shape",
    [
        dict(head_dim=64, ratio=8, bits=(4, 4)),
        dict(head_dim=64, ratio=8, q_len=3, bits=(2, 2)),
        dict(head_dim=96, value_dim=80, ratio=4, q_len=8),
        dict(head_dim=96, ratio=1, q_len=3, bits=(3, 2), hybrid=True),
        dict(head_dim=80, ratio=3, q_len=2, bits=(4, 3)),
        dict(head_dim=128, ratio=4),
        dict(head_dim=128, ratio=1, bits=(3, 4), hybrid=True),
        dict(head_dim=256, ratio=4, q_len=3, bits=(3, 2), hybrid=True, tiles=2),
        dict(head_dim=256, ratio=8, bits=(2, 3), tiles=1),
    ],
    ids=str,
)
def test_decoding_is_the_reference(device, generator, shape):
    query, packed, exact = make_case(generator, **shape)
    check(device, query, packed, exact, padding(packed, exact, hidden=50))


@pytest.mark.parametrize("sinks, softcap", [(True, None), (False, 2.0), (True, 30.0)])
@pytest.mark.parametrize("q_len", [1, 3])
def test_learned_sinks_and_capped_logits_are_those_of_the_reference(device, generator, sinks, softcap, q_len):
    query, packed, exact = make_case(generator, head_dim=64, ratio=3, q_len=q_len, tiles=5)
    learned = torch.randn(6, generator=generator).half() * 3 if sinks else None
    check(device, query * 3, packed, exact, padding(packed, exact, 50), sinks=learned, softcap=softcap)


@pytest.mark.parametrize("width", [1, GROUP])
def test_values_are_multiplied_by_the_norm_of_their_token_or_tile(device, generator, width):
    query, packed, exact = make_case(generator, head_dim=64, ratio=2, tiles=5)
    norm = torch.rand(2, 2, 7, width, generator=generator).add(0.1).bfloat16()[:, :, :5]  # with spare room behind
    norm[1, 0, 3], norm[0, 1, 4] = 1000, 4
    check(device, query, replace(packed, value_norm=norm), exact, tolerance=2e-2)


@pytest.mark.parametrize("head_dim, ratio, q_len", [(64, 4, 1), (80, 3, 2)])
def test_rotated_keys_are_asked_by_rotated_queries(device, generator, head_dim, ratio, q_len):
    query, packed, exact = make_case(generator, head_dim=head_dim, ratio=ratio, q_len=q_len, tiles=5)
    check(device, query, replace(packed, is_rotated=True), exact)


@pytest.mark.parametrize("sinks, tiles, recent", [(0, 1, 1), (1, 2, 2), (32, 3, 63), (64, 4, 64), (65, 5, 127)])
def test_lengths_around_a_block_are_attended_whole(device, generator, sinks, tiles, recent):
    check(device, *make_case(generator, head_dim=64, tiles=tiles, sinks=sinks, recent=recent, ratio=2))


@pytest.mark.parametrize("hidden", [0, 30])
def test_dead_slots_are_not_attended(device, generator, hidden):
    query, packed, exact = make_case(generator, head_dim=64, tiles=5, ratio=2)
    alive = torch.ones(5 * GROUP, dtype=torch.bool)
    alive[20:40] = alive[2 * GROUP : 4 * GROUP] = False
    packed = replace(packed, alive=alive)
    check(device, query, packed, exact, padding(packed, exact, hidden) if hidden else None)


@pytest.mark.parametrize("tiles_per_program", [1, 2, 3])
def test_any_split_gives_the_same(device, generator, monkeypatch, tiles_per_program):
    monkeypatch.setattr(kernels, "_tiles_per_program", lambda *_: tiles_per_program)
    check(device, *make_case(generator, head_dim=64, tiles=5, ratio=2))


def test_more_parts_than_are_merged_at_a_time_are_merged(device, generator, monkeypatch):
    monkeypatch.setattr(kernels, "_tiles_per_program", lambda *_: 1)
    check(device, *make_case(generator, head_dim=64, tiles=20))


def test_rows_that_see_no_key_are_zero(device, generator):
    query, packed, exact = (move(part, device) for part in make_case(generator, head_dim=64, ratio=2))
    mask = padding(packed, exact, hidden=7 + 3 * GROUP + 41).to(device)
    out = kernels.packed_attention(query, packed, exact, scale=0.2, key_mask=mask)
    assert (out[1] == 0).all() and (out[0] != 0).any()


def test_a_store_s_spare_room_is_not_read(device, generator):
    query, packed, exact = make_case(generator, head_dim=64, bits=(3, 2), hybrid=True)

    def with_room(tensor):
        buffer = torch.full((*tensor.shape[:2], tensor.shape[2] + 2, *tensor.shape[3:]), 30000).to(tensor.dtype)
        buffer = torch.full_like(buffer, float("nan")) if tensor.is_floating_point() else buffer
        buffer[:, :, : tensor.shape[2]] = tensor
        return buffer[:, :, : tensor.shape[2]]

    key, value = (Packed(*(None if t is None else with_room(t) for t in part)) for part in (packed.key, packed.value))
    check(device, query, replace(packed, key=key, value=value), exact)


def test_queries_and_keys_beyond_float16_s_products_stay_finite(device, generator):
    query, packed, exact = make_case(generator, head_dim=64)
    packed = replace(packed, key_norm=packed.key_norm * 3000)
    query, packed, exact = (move(part, device) for part in (query * 1000, packed, exact))
    assert torch.isfinite(kernels.packed_attention(query, packed, exact, scale=1e-6)).all()


def test_float32_is_refused_with_a_way_out(generator):
    query, packed, exact = make_case(generator, head_dim=64)
    with pytest.raises(ValueError, match=r"not in torch.float32 .* use the reference's"):
        kernels.packed_attention(query.float(), packed, exact, scale=0.2)


def same_bits(got: Packed, expected: Packed) -> bool:
    """Equal words, scales and zero points; -0.0 is not 0.0."""
    if (got.zero is None) != (expected.zero is None) or not torch.equal(got.words.cpu(), expected.words):
        return False
    pairs = [(got.scale, expected.scale)] + ([] if got.zero is None else [(got.zero, expected.zero)])
    return all(torch.equal(mine.cpu().view(torch.int16), theirs.view(torch.int16)) for mine, theirs in pairs)


def awkward(tokens, dim, dtype, generator) -> torch.Tensor:
    """Random numbers with groups of zeros, of equal numbers, of numbers too small or too large for a scale."""
    x = torch.randn(2, 2, tokens + 5, dim, generator=generator)[:, :, 3:-2] * 3  # rows are not contiguous to the next
    x[0, 0, :, 3], x[1, 1, :, 5], x[0, 0, :, 7] = 0, 2.5, 1e-9
    x[0, 1, 0], x[1, 0, 2], x[1, 0, 3] = 6e4 if dtype == torch.float16 else 1e6, 0, -1.5
    return x.to(dtype)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("dtype, normalize", [(torch.float32, True), (torch.bfloat16, False), (torch.float16, True)])
def test_keys_are_quantized_bit_by_bit_like_the_reference(device, generator, bits, dtype, normalize):
    key = awkward(32, 96, dtype, generator)
    mean = reference.channel_mean(key) if normalize else None
    norm = reference.channel_norm(key, mean) if normalize else None
    got = kernels.quantize_keys(key.to(device), bits, move(norm, device), move(mean, device))
    assert same_bits(got, reference.quantize_keys(key, bits, norm, mean))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("dtype, hybrid", [(torch.float32, True), (torch.bfloat16, True), (torch.float16, False)])
def test_values_are_quantized_bit_by_bit_like_the_reference(device, generator, bits, dtype, hybrid):
    value = awkward(64, 80, dtype, generator)
    for norm in (None, reference.value_norms(value), reference.value_norms(value, by_token=False)):
        got = kernels.quantize_values(value.to(device), bits, hybrid, move(norm, device))
        assert same_bits(got, reference.quantize_values(value, bits, hybrid, norm))


# The interpreter has no bfloat16 products, and nothing to wait for.
@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_bfloat16_is_attended(generator, head_dim):
    query, packed, exact = make_case(generator, head_dim=head_dim, ratio=4, q_len=3, tiles=9)
    exact = [(key.bfloat16(), value.bfloat16()) for key, value in exact]
    check("cuda", query.bfloat16(), packed, exact, padding(packed, exact, hidden=50), tolerance=2e-2)


@pytest.mark.gpu
def test_no_call_waits_for_the_device(generator):
    query, packed, exact = make_case(generator, head_dim=64, tiles=5, sinks=GROUP)
    packed = replace(packed, alive=torch.arange(5 * GROUP) % 7 > 0)
    mask = padding(packed, exact, hidden=30)
    query, packed, exact, mask = (move(part, "cuda") for part in (query, packed, exact, mask))
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernels.packed_attention(query, packed, exact, scale=0.2, key_mask=mask)
        kernels.quantize_keys(exact[0][0], 3, packed.key_norm, packed.key_mean)
        kernels.quantize_values(exact[0][1], 2, hybrid=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
