"""InnerQ's quantizer on CPUs, compiled by numba: bit by bit what `reference.py` makes, and back again, on threads."""

import numpy as np
import torch

from ..jit import jit, on_threads, take_next
from . import reference
from .cpu_floats import from_half, to_float, to_half
from .reference import GROUP, KEY_REACH, VALUE_REACH, Packed, PackedKV

LANES = 16  # groups at a time: a 512-bit register of floats
MIN_NUMBERS = 2**18  # for each thread: fewer cost more to hand over than they save


# No `fastmath` in this file: a fused or reordered operation would round differently from torch.
@jit()
def _symmetric(groups, middle, reach, scales, codes):
    """`groups [32, lanes]` to scales (float16 bits) and codes; see `reference._symmetric`."""
    for lane in range(LANES):
        top = np.float32(0)
        for j in range(GROUP):
            size = abs(groups[j, lane])
            top = size if size > top or size != size else top
        scales[lane] = to_half(top * reach / middle)
    for lane in range(LANES):
        step = from_half(scales[lane])
        for j in range(GROUP):
            code = np.rint(groups[j, lane] / step + middle) if step > 0 else np.float32(0)
            codes[j, lane] = np.int32(min(max(code, np.float32(0)), 2 * middle))


@jit()
def _asymmetric(groups, steps, scales, zeros, codes):
    """As `_symmetric`, in `steps` steps from the smallest number; see `reference._asymmetric`."""
    for lane in range(LANES):
        low = high = groups[0, lane]
        for j in range(1, GROUP):
            low, high = min(low, groups[j, lane]), max(high, groups[j, lane])
        zeros[lane] = to_half(low)
        width = (high - from_half(zeros[lane])) / np.float32(steps)
        scales[lane] = to_half(np.float32(0) if width < 0 else width)
    for lane in range(LANES):
        step, zero = from_half(scales[lane]), from_half(zeros[lane])
        for j in range(GROUP):
            code = np.rint((groups[j, lane] - zero) / step) if step > 0 else np.float32(0)
            codes[j, lane] = np.int32(min(max(code, np.float32(0)), np.float32(steps)))


@jit()
def _fold_error(groups, codes, middle, step, zero, lane, errors):
    """L1 error of a group, summed in the order of `reference._fold_sum`."""
    for j in range(GROUP):
        errors[j] = abs(np.float32(groups[j, lane] - (np.float32(codes[j, lane]) - middle) * step) - zero)
    half = GROUP // 2
    while half > 0:
        for j in range(half):
            errors[j] += errors[j + half]
        half //= 2
    return errors[0]


@jit()
def _choose(groups, middle, steps, scales, zeros, codes, other_codes, other_scales, errors):
    """Per group, replaces the symmetric form by the asymmetric one where that has the smaller error."""
    _asymmetric(groups, steps, other_scales, zeros, other_codes)
    for lane in range(LANES):
        error = _fold_error(groups, codes, middle, from_half(scales[lane]), np.float32(0), lane, errors)
        step, zero = from_half(other_scales[lane]), from_half(zeros[lane])
        if _fold_error(groups, other_codes, np.float32(0), step, zero, lane, errors) < error:
            scales[lane] = other_scales[lane] | np.int16(-0x8000)
            for j in range(GROUP):
                codes[j, lane] = other_codes[j, lane]
        else:
            zeros[lane] = 0


@jit()
def _quantize(
    counter, numbers, norm, mean, token_norm, by_channel, hybrid, planes, middle, reach, words, scales, zeros
):
    """
    Packs `numbers [pairs, N, channels]` tile by tile into `words [pairs, T, rows, bits, width]` and so on, where rows
    and width are those of `PackedKV`. `by_channel` groups channels of a token (keys), which have `norm` and `mean
    [pairs, channels]`, else tokens of a channel, which have `token_norm [pairs, T, 32]`.
    """
    pairs, tiles, rows, bits, width = words.shape
    groups, other_scales = np.empty((GROUP, LANES), np.float32), np.empty(LANES, np.int16)
    codes, other_codes = np.empty((GROUP, LANES), np.int32), np.empty((GROUP, LANES), np.int32)
    errors = np.empty(GROUP, np.float32)
    while True:
        item = take_next(counter)
        if item >= pairs * tiles:
            return
        pair, tile = item // tiles, item % tiles
        tokens = numbers[pair, tile * GROUP : (tile + 1) * GROUP]
        for row in range(rows):
            for first in range(0, width, LANES):
                for j in range(GROUP):
                    for lane in range(LANES):
                        if by_channel:
                            number = to_float(tokens[first + lane, row * GROUP + j])
                            if mean is not None:
                                number = number - mean[pair, row * GROUP + j]
                            groups[j, lane] = number if norm is None else number / norm[pair, row * GROUP + j]
                        else:
                            number = to_float(tokens[j, first + lane])
                            groups[j, lane] = (
                                number if token_norm is None else number / to_float(token_norm[pair, tile, j])
                            )
                lanes = slice(first, first + LANES)
                _symmetric(groups, middle, reach, scales[pair, tile, row, lanes], codes)
                if hybrid:
                    scale, zero = scales[pair, tile, row, lanes], zeros[pair, tile, row, lanes]
                    _choose(groups, middle, 2**bits - 1, scale, zero, codes, other_codes, other_scales, errors)
                _pack(codes, planes, words[pair, tile, row, :, lanes])


@jit()
def _pack(codes, planes, words):
    """`codes [32, lanes]` into `words [bits, lanes]`; see `reference.pack_codes`."""
    words[:] = 0
    for low, width, first in planes:
        for j in range(GROUP):
            word, shift = first + j * width // GROUP, j * width % GROUP
            for lane in range(LANES):
                words[word, lane] |= np.int32(((codes[j, lane] >> low) & ((1 << width) - 1)) << shift)


@jit()
def _dequantize(counter, words, scales, zeros, by_channel, norm, mean, planes, middle, out):
    """Inverse of `_quantize`, into `out [pairs, N, channels]` of float32."""
    pairs, tiles, rows, _, width = words.shape
    steps, offsets = np.empty(width, np.float32), np.empty(width, np.float32)
    numbers = np.empty((GROUP, width), np.float32)
    while True:
        item = take_next(counter)
        if item >= pairs * tiles:
            return
        pair, tile = item // tiles, item % tiles
        tokens = out[pair, tile * GROUP : (tile + 1) * GROUP]
        for row in range(rows):
            for lane in range(width):
                scale = scales[pair, tile, row, lane]
                steps[lane] = from_half(np.int16(scale & 0x7FFF))
                offsets[lane] = -middle * steps[lane]
                if zeros is not None and scale < 0:
                    offsets[lane] = from_half(zeros[pair, tile, row, lane])
            for j in range(GROUP):
                for lane in range(width):
                    numbers[j, lane] = 0
                for low, plane, first in planes:
                    word, shift = first + j * plane // GROUP, j * plane % GROUP
                    for lane in range(width):
                        code = (words[pair, tile, row, word, lane] >> shift) & ((1 << plane) - 1)
                        numbers[j, lane] += np.float32(code << low)
                for lane in range(width):
                    numbers[j, lane] = numbers[j, lane] * steps[lane] + offsets[lane]
            if by_channel:
                for lane in range(width):
                    for j in range(GROUP):
                        channel, number = row * GROUP + j, numbers[j, lane]
                        if norm is not None:
                            number *= norm[pair, channel]
                        if mean is not None:
                            number += mean[pair, channel]
                        tokens[lane, channel] = number
            else:
                tokens[:] = numbers


def quantize_keys(
    key: torch.Tensor, bits: int, key_norm: torch.Tensor | None = None, key_mean: torch.Tensor | None = None
) -> Packed:
    """As `reference.quantize_keys`."""
    tile = (key.shape[-1] // GROUP, bits, GROUP)
    return _to_packed(key, tile, reach=KEY_REACH[bits], by_channel=True, norm=key_norm, mean=key_mean)


def quantize_values(
    value: torch.Tensor, bits: int, hybrid: bool = False, value_norm: torch.Tensor | None = None
) -> Packed:
    """As `reference.quantize_values`."""
    if value.shape[-1] % LANES:
        return reference.quantize_values(value, bits, hybrid, value_norm)
    tile = (1, bits, value.shape[-1])
    packed = _to_packed(value, tile, reach=VALUE_REACH[bits], by_channel=False, hybrid=hybrid, token_norm=value_norm)
    zero = None if packed.zero is None else packed.zero.squeeze(3)
    return Packed(packed.words.squeeze(3), packed.scale.squeeze(3), zero)


def _to_packed(
    numbers: torch.Tensor,
    tile: tuple[int, int, int],
    *,
    reach: float,
    by_channel: bool,
    hybrid: bool = False,
    norm: torch.Tensor | None = None,
    mean: torch.Tensor | None = None,
    token_norm: torch.Tensor | None = None,
) -> Packed:
    """Quantizes `[B, Hkv, N, channels]` into tiles of `(rows, bits, lanes)`."""
    (batch, heads, tokens), (rows, bits, lanes) = numbers.shape[:3], tile
    shape = (batch, heads, tokens // GROUP, rows)
    words = torch.empty(*shape, bits, lanes, dtype=torch.int32, device="cpu")
    scale, zero = (torch.empty(*shape, lanes, dtype=torch.float16, device="cpu") for _ in range(2))
    args = (
        to_array(numbers),
        _by_head(norm),
        _by_head(mean),
        None if token_norm is None else to_array(token_norm.expand(-1, -1, -1, GROUP)),
        by_channel,
        hybrid,
        tuple(reference._planes(bits)),
        np.float32(reference.code_of_zero(bits)),
        np.float32(reach),
        words.flatten(0, 1).numpy(),
        _half_bits(scale),
        _half_bits(zero),
    )
    on_threads(_quantize, args, numbers.numel() // MIN_NUMBERS)
    return Packed(words, scale, zero if hybrid else None)


def dequantize(packed: PackedKV) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.dequantize`."""
    if packed.value.words.shape[-1] % LANES:
        return reference.dequantize(packed)
    if packed.is_rotated:
        key = reference.restore_keys(_to_numbers(packed.key, by_channel=True), packed)
    else:
        key = _to_numbers(packed.key, by_channel=True, norm=packed.key_norm, mean=packed.key_mean)
    words, scale, zero = packed.value
    tiles = Packed(words.unsqueeze(3), scale.unsqueeze(3), None if zero is None else zero.unsqueeze(3))
    value = _to_numbers(tiles, by_channel=False)
    if packed.value_norm is not None:
        value.unflatten(2, (-1, GROUP)).mul_(packed.value_norm[..., None])
    return (key, value) if packed.alive is None else (key[:, :, packed.alive], value[:, :, packed.alive])


def _to_numbers(
    packed: Packed, *, by_channel: bool, norm: torch.Tensor | None = None, mean: torch.Tensor | None = None
) -> torch.Tensor:
    batch, heads, tiles, rows, bits, lanes = packed.words.shape
    shape = batch, heads, tiles * GROUP, rows * GROUP if by_channel else lanes
    out = torch.empty(shape, dtype=torch.float32, device="cpu")
    args = (
        packed.words.contiguous().flatten(0, 1).numpy(),
        _half_bits(packed.scale),
        None if packed.zero is None else _half_bits(packed.zero),
        by_channel,
        _by_head(norm),
        _by_head(mean),
        tuple(reference._planes(bits)),
        np.float32(reference.code_of_zero(bits)),
        out.flatten(0, 1).numpy(),
    )
    on_threads(_dequantize, args, out.numel() // MIN_NUMBERS)
    return out


def _by_head(channels: torch.Tensor | None) -> np.ndarray | None:
    """`[B, Hkv, 1, D]` as an array `[B * Hkv, D]`."""
    return None if channels is None else channels.reshape(-1, channels.shape[-1]).numpy()


def _half_bits(tensor: torch.Tensor) -> np.ndarray:
    """Scales `[B, Hkv, ...]` as an array `[B * Hkv, ...]` of int16: numba does not know float16."""
    return tensor.contiguous().flatten(0, 1).view(torch.int16).numpy()


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """`[B, Hkv, n, D]` as an array `[B * Hkv, n, D]` of a type that tells `to_float` the dtype."""
    stands_for = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}.get(tensor.dtype)
    tensor = tensor.detach().contiguous().flatten(0, 1)
    return tensor.float().numpy() if stands_for is None else tensor.view(stands_for).numpy()
