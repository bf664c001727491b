"""InnerQ's formulas: codes survive packing, errors stay within half a step, packed attention is attention."""

from dataclasses import replace

import pytest
import torch

from hf_infeco.kernels.innerq import reference
from hf_infeco.kernels.innerq.reference import GROUP, PackedKV


def random_groups(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, GROUP, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
def test_codes_survive_packing_and_fill_no_more_words_than_bits(bits):
    codes = torch.randint(0, 2**bits, (3, 5, GROUP), generator=torch.Generator().manual_seed(bits))
    words = reference.pack_codes(codes, bits)
    assert words.dtype == torch.int32 and words.shape == (3, bits, 5)
    assert torch.equal(reference.unpack_codes(words).long(), codes)


def test_all_ones_survive_the_sign_bit_of_a_word():
    codes = torch.full((1, GROUP), 7)
    assert torch.equal(reference.unpack_codes(reference.pack_codes(codes, 3)).long(), codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_symmetric_error_is_at_most_half_a_step(bits):
    groups = random_groups(7, 9)
    packed = reference.quantize_groups(groups, bits)
    error = (reference.dequantize_groups(packed) - groups).abs()
    # float16 scales are off by up to 2**-11, which the largest code multiplies.
    limit = packed.scale.float()[..., None] * 0.5 + groups.abs() * 2**-10
    assert (error <= limit).all()


@pytest.mark.parametrize("value", [0.0, 1.5, -3.0, 1e-9, 6e4])
@pytest.mark.parametrize("hybrid", [False, True])
def test_groups_of_equal_numbers_come_back(value, hybrid):
    groups = torch.full((2, GROUP), value)
    back = reference.dequantize_groups(reference.quantize_groups(groups, 3, hybrid))
    torch.testing.assert_close(back, groups, rtol=1e-3, atol=1e-6)


def test_numbers_beyond_float16_saturate_instead_of_becoming_infinite():
    back = reference.dequantize_groups(reference.quantize_groups(torch.full((1, GROUP), 1e6), 3, hybrid=True))
    assert torch.isfinite(back).all()


def test_hybrid_is_never_worse_than_symmetric_and_uses_both_forms():
    ternary = random_groups(50).sign() * (random_groups(50, seed=1) > 0)  # what the symmetric form holds exactly
    groups = torch.cat([ternary, random_groups(50, seed=2) * 0.1 + 3])
    symmetric = reference.quantize_groups(groups, 3)
    hybrid = reference.quantize_groups(groups, 3, hybrid=True)

    def error(packed):
        return (reference.dequantize_groups(packed) - groups).abs().sum(-1)

    assert (error(hybrid) <= error(symmetric) + 1e-5).all()
    is_asymmetric = hybrid.scale.signbit()
    assert is_asymmetric[50:].all() and not is_asymmetric[:50].any()


def test_two_bits_are_four_levels_half_a_step_beside_zero():
    groups = torch.tensor([-1.5, -0.5, 0.5, 1.5]).repeat(GROUP // 4)[None]
    assert torch.equal(reference.dequantize_groups(reference.quantize_groups(groups, 2)), groups)
    spread = random_groups(200)
    ternary = spread.abs().amax(-1, keepdim=True)
    ternary = (spread / ternary).round() * ternary
    back = reference.dequantize_groups(reference.quantize_groups(spread, 2))
    assert (back - spread).square().mean() < 0.7 * (ternary - spread).square().mean()


def test_centering_spends_the_codes_on_what_changes():
    """Channels that hardly leave their means: centred, their error is one of what changes, not of the mean."""
    key = random_groups(1, 1, 64, 2).flatten(-2) * 0.1 + 3 * torch.randn(
        64, generator=torch.Generator().manual_seed(5)
    )
    value = reference.quantize_values(key, 3)

    def error(mean) -> float:
        norm = reference.channel_norm(key, mean)
        packed = PackedKV(reference.quantize_keys(key, 3, norm, mean), value, norm, mean)
        return float((reference.dequantize(packed)[0] - key).norm() / (key - key.mean(2, keepdim=True)).norm())

    assert error(reference.channel_mean(key)) < 0.25 < 1 < error(None)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_reach_of_keys_lowers_their_error(bits):
    key = random_groups(1, 1, 640, 2).flatten(-2)
    tiles = key.unflatten(-1, (-1, GROUP)).unflatten(2, (-1, GROUP)).transpose(3, 4)
    whole, saturated = reference.quantize_groups(tiles, bits), reference.quantize_keys(key, bits)

    def error(packed):
        return (reference.dequantize_groups(packed) - tiles).square().mean()

    assert error(saturated) <= error(whole) * {2: 0.8, 3: 0.9, 4: 1.0}[bits]
    largest = reference.dequantize_groups(saturated).abs().amax(-1)
    torch.testing.assert_close(largest, tiles.abs().amax(-1) * reference.KEY_REACH[bits], rtol=1e-3, atol=0)


@pytest.mark.parametrize("width", [32, 64, 80, 96, 128, 256])
def test_a_rotation_keeps_products_and_undoes_itself(width):
    query, key = random_groups(3, width).flatten(1), random_groups(3, width, seed=1).flatten(1)
    torch.testing.assert_close(reference.rotate(query) @ reference.rotate(key).T, query @ key.T, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(reference.rotate(reference.rotate(key)), key, rtol=1e-5, atol=1e-5)


def test_a_rotation_first_used_in_inference_mode_carries_a_gradient_later():
    reference._hadamard.cache_clear()
    with torch.inference_mode():
        reference.rotate(torch.ones(1, 64))
    query = torch.ones(1, 64, requires_grad=True)
    reference.rotate(query).square().sum().backward()
    torch.testing.assert_close(query.grad, 2 * torch.ones(1, 64))


def test_a_rotation_spreads_a_channel_that_is_much_larger_than_the_others():
    key = random_groups(2, 2, 640, 2).flatten(-2)
    key[..., 3] *= 10

    def error(keys):
        kept = reference.dequantize_groups(reference.quantize_keys(keys, 3)).transpose(3, 4).flatten(-2).flatten(2, 3)
        return float((kept - keys).norm() / keys.norm())

    assert error(reference.rotate(key)) < 0.65 * error(key)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_reach_of_values_lowers_their_error(bits):
    value = random_groups(1, 1, 640, 2).flatten(-2)
    tiles = value.unflatten(2, (-1, GROUP)).transpose(-1, -2)
    whole, saturated = reference.quantize_groups(tiles, bits), reference.quantize_values(value, bits)

    def error(packed):
        return (reference.dequantize_groups(packed) - tiles).square().mean()

    assert error(saturated) <= error(whole) * {2: 0.85, 3: 1.0, 4: 1.0}[bits]


def test_normalization_keeps_a_silent_channel_finite():
    key = torch.randn(1, 1, 64, 64)
    key[..., 3] = 0
    norm = reference.channel_norm(key)
    packed = reference.quantize_keys(key, 3, norm)
    assert torch.isfinite(reference.dequantize_groups(packed)).all()


def make_packed(batch, kv_heads, tiles, head_dim, value_dim, *, normalize, hybrid, is_rotated=False) -> PackedKV:
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(batch, kv_heads, tiles * GROUP, head_dim, generator=generator)
    value = torch.randn(batch, kv_heads, tiles * GROUP, value_dim, generator=generator)
    mean = reference.channel_mean(key) if normalize else None
    norm = reference.channel_norm(key, mean) if normalize else None
    values = reference.quantize_values(value, 2 if hybrid else 3, hybrid)
    if is_rotated:
        keys = reference.quantize_keys(reference.rotate(reference.normalize_keys(key, norm, mean)), 3)
    else:
        keys = reference.quantize_keys(key, 3, norm, mean)
    return PackedKV(keys, values, norm, mean, is_rotated=is_rotated)


def attention_in_float64(query, key, value, *, scale, key_mask, sinks, softcap):
    """By the book: all logits, a cap, a column for the sinks, one softmax."""
    query, key, value = (tensor.double() for tensor in (query, key, value))
    ratio, (q_len, kv_len) = query.shape[1] // key.shape[1], (query.shape[2], key.shape[2])
    key, value = (tensor.repeat_interleave(ratio, 1) for tensor in (key, value))
    logits = query @ key.transpose(-1, -2) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    mask = torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len) & key_mask[:, None, None, :]
    logits = logits.masked_fill(~mask, -torch.inf)
    if sinks is None:
        return logits.softmax(-1) @ value
    column = sinks.double()[None, :, None, None].expand(*logits.shape[:3], 1)
    return torch.cat([logits, column], -1).softmax(-1)[..., :-1] @ value


def plain_attention(query, key, value, *, scale, key_mask=None):
    q_len, kv_len = query.shape[2], key.shape[2]
    mask = torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)[None, None]
    if key_mask is not None:
        mask = mask & key_mask[:, None, None, :]
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=True
    )


@pytest.mark.parametrize("dtype, largest", [(torch.float32, 1e35), (torch.bfloat16, 3e5), (torch.bfloat16, 1e9)])
def test_values_beyond_float16_keep_their_relative_error(dtype, largest):
    value = random_groups(1, 2, 96, 2).flatten(-2)
    value[:, 1, 32:64] *= largest
    value = value.to(dtype)
    norm = reference.value_norms(value, by_token=False)
    assert torch.equal(norm[..., 0] == 1, torch.tensor([[[True, True, True], [True, False, True]]]))
    packed = replace(make_packed(1, 2, 3, 64, 64, normalize=True, hybrid=False), value_norm=norm)
    packed = replace(packed, value=reference.quantize_values(value, 3, value_norm=norm))
    back = reference.dequantize(packed)[1]
    for tile in range(3):
        rows = slice(tile * GROUP, (tile + 1) * GROUP)
        step = value[:, :, rows].float().abs().amax(2, keepdim=True) / 3
        assert ((back[:, :, rows] - value[:, :, rows].float()).abs() <= 0.51 * step).all()


@pytest.mark.parametrize("largest", [1.0, 1e-3, 1e6, 1e25])
def test_with_norms_every_token_has_an_error_of_its_own_size(largest):
    value = random_groups(1, 2, 96, 2).flatten(-2)
    value[:, :, 10:20] *= largest
    norm = reference.value_norms(value)
    packed = replace(make_packed(1, 2, 3, 64, 64, normalize=True, hybrid=False), value_norm=norm)
    back = reference.dequantize(replace(packed, value=reference.quantize_values(value, 3, value_norm=norm)))[1]
    error = (back.double() - value).norm(dim=-1) / value.double().norm(dim=-1)
    assert error.max() < 0.5


def test_norms_of_double_precision_are_the_same():
    value = random_groups(1, 2, 32, 2).flatten(-2)
    assert torch.equal(reference.value_norms(value.double()), reference.value_norms(value))


def test_silent_tokens_stay_silent_and_infinite_ones_harm_no_other():
    value = torch.ones(1, 1, 32, 64)
    value[:, :, 3], value[:, :, 7, 0] = 0, float("inf")
    norm = reference.value_norms(value)
    assert norm.isfinite().all()
    packed = replace(make_packed(1, 1, 1, 64, 64, normalize=True, hybrid=False), value_norm=norm)
    back = reference.dequantize(replace(packed, value=reference.quantize_values(value, 3, value_norm=norm)))[1]
    assert back[:, :, 3].abs().max() < 1e-20
    torch.testing.assert_close(back[:, :, :3, 1:], value[:, :, :3, 1:], rtol=1e-2, atol=0)


@pytest.mark.parametrize("head_dim, value_dim", [(64, 64), (96, 96), (128, 128), (256, 256), (96, 80)])
@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
@pytest.mark.parametrize("q_len, is_rotated", [(1, False), (5, False), (5, True)])
def test_packed_attention_equals_attention_on_dequantized_tokens(head_dim, value_dim, ratio, q_len, is_rotated):
    batch, kv_heads, tiles = 2, 2, 3
    options = dict(normalize=True, hybrid=ratio % 4 == 0, is_rotated=is_rotated)
    packed = make_packed(batch, kv_heads, tiles, head_dim, value_dim, **options)
    generator = torch.Generator().manual_seed(1)
    sink, recent = (
        tuple(torch.randn(batch, kv_heads, n, d, generator=generator) for d in (head_dim, value_dim)) for n in (7, 41)
    )
    query = torch.randn(batch, kv_heads * ratio, q_len, head_dim, generator=generator)
    key_mask = torch.ones(batch, 7 + tiles * GROUP + 41, dtype=torch.bool)
    key_mask[1, :50] = False  # padding that reaches into the packed tokens

    pieces = zip(sink, reference.dequantize(packed), recent, strict=True)
    key, value = (torch.cat(piece, dim=2) for piece in pieces)
    expected = plain_attention(query, key, value, scale=0.2, key_mask=key_mask)
    got = reference.packed_attention(query, packed, [sink, recent], scale=0.2, key_mask=key_mask)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sinks, softcap", [(True, None), (False, 2.0), (True, 0.5)])
@pytest.mark.parametrize("q_len", [1, 5])
def test_learned_sinks_and_capped_logits_are_those_of_one_softmax(sinks, softcap, q_len):
    packed = make_packed(2, 2, 3, 64, 96, normalize=True, hybrid=False)
    generator = torch.Generator().manual_seed(1)
    exact = [tuple(torch.randn(2, 2, n, d, generator=generator) for d in (64, 96)) for n in (7, 41)]
    query = torch.randn(2, 8, q_len, 64, generator=generator)
    learned = torch.randn(8, generator=generator) * 3 + 2 if sinks else None
    key_mask = torch.ones(2, 7 + packed.num_slots + 41, dtype=torch.bool)
    key_mask[1, :50] = False
    settings = dict(scale=0.3, key_mask=key_mask, sinks=learned, softcap=softcap)
    key, value = (torch.cat(piece, 2) for piece in zip(exact[0], reference.dequantize(packed), exact[1], strict=True))
    expected = attention_in_float64(query, key, value, **settings)
    got = reference.packed_attention(query, packed, exact, **settings)
    torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-5)


def test_a_row_that_sees_its_sink_alone_is_zero():
    packed = make_packed(1, 1, 1, 64, 64, normalize=True, hybrid=False)
    own = torch.randn(1, 1, 1, 64)
    hidden = torch.zeros(1, GROUP + 1, dtype=torch.bool)
    exact = [(own[:, :, :0], own[:, :, :0]), (own, own)]
    out = reference.packed_attention(own, packed, exact, scale=0.1, key_mask=hidden, sinks=torch.tensor([-3.0]))
    assert (out == 0).all()


def test_dead_slots_are_not_attended(monkeypatch):
    monkeypatch.setattr(reference, "CHUNK_TILES", 2)  # several chunks, one of them dead throughout
    packed = make_packed(1, 1, 5, 64, 64, normalize=False, hybrid=False)
    alive = torch.ones(5 * GROUP, dtype=torch.bool)
    alive[20:40] = alive[2 * GROUP : 4 * GROUP] = False
    packed = replace(packed, alive=alive)
    key, value = reference.dequantize(packed)
    assert key.shape[2] == alive.sum()
    query, empty, own = torch.randn(1, 1, 1, 64), torch.zeros(1, 1, 0, 64), torch.randn(1, 1, 1, 64)
    got = reference.packed_attention(query, packed, [(empty, empty), (own, own)], scale=0.1)
    expected = plain_attention(query, torch.cat([key, own], 2), torch.cat([value, own], 2), scale=0.1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
