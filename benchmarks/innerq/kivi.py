"""
KIVI's grouping (arXiv 2402.02750) in the style of our CPU kernel, to compare groupings and nothing else.

Groups run along the outer dimension: of keys 32 tokens of one channel, of values 32 channels of one token, each in 2
bits from its minimum to its maximum, with a float16 scale and zero point: 3 bits per number. The words lie as in
InnerQ and are unpacked by the same loop. What differs is where a scale goes. It is another one for every number of
the sum, so it cannot wait until the sum is done: it is multiplied into the queries (keys) and into the weights
(values), anew for every tile and every group.
"""

from typing import NamedTuple

import numpy as np
import torch

from hf_infeco.kernels.innerq import cpu
from hf_infeco.kernels.innerq.cpu_floats import from_half
from hf_infeco.kernels.innerq.reference import GROUP, code_of_zero, pack_codes
from hf_infeco.kernels.jit import SUMS, jit, on_threads, take_next

BITS = 2
STEPS = 2**BITS - 1  # from the minimum to the maximum of a group
# `_add_groups` adds -MIDDLE * scale * (sum of the factors) for where zero lies. With a scale of 1 and -(sum of factors
# times zero points) / MIDDLE in place of the factors' sum, it adds the zero points.
MIDDLE = np.float32(code_of_zero(BITS))

Pair = tuple[torch.Tensor, torch.Tensor]


class Outer(NamedTuple):
    """
    Packed tokens: words as in `reference.PackedKV`; float16 scales and zeros of keys `[B, Hkv, T, D]` (by channel), of
    values `[B, Hkv, N, Dv / 32]` (by token).
    """

    key_words: torch.Tensor
    key_scale: torch.Tensor
    key_zero: torch.Tensor
    value_words: torch.Tensor
    value_scale: torch.Tensor
    value_zero: torch.Tensor


def _codes(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`groups [..., 32]` as codes `[..., 32]` and float16 scale and zero `[...]`: codes * scale + zero."""
    groups = groups.float()
    low, high = groups.aminmax(dim=-1)
    zero = low.half()
    scale = ((high - zero.float()) / STEPS).clamp(min=0).half()
    step = scale.float().where(scale > 0, 1)[..., None]
    return ((groups - zero.float()[..., None]) / step).round().clamp(0, STEPS), scale, zero


def _by_channel(key: torch.Tensor) -> torch.Tensor:
    return key.unflatten(2, (-1, GROUP)).transpose(-1, -2)  # [B, Hkv, T, D, 32 tokens]


def _by_token(value: torch.Tensor) -> torch.Tensor:
    return value.unflatten(-1, (-1, GROUP))  # [B, Hkv, N, Dv / 32, 32 channels]


def round_trip(key: torch.Tensor, value: torch.Tensor) -> Pair:
    """`key [B, Hkv, N, D]` and `value [B, Hkv, N, Dv]` as KIVI-2 gives them back, float32; N is a multiple of 32."""
    back = []
    for groups in (_by_channel(key), _by_token(value)):
        codes, scale, zero = _codes(groups)
        back.append(codes * scale.float()[..., None] + zero.float()[..., None])
    return back[0].transpose(-1, -2).flatten(2, 3), back[1].flatten(-2)


def pack(key: torch.Tensor, value: torch.Tensor) -> Outer:
    """`key [B, Hkv, N, D]`, `value [B, Hkv, N, Dv]`; 32 divides N, D and Dv."""
    codes, key_scale, key_zero = _codes(_by_channel(key))
    by_lane = codes.unflatten(3, (-1, GROUP)).transpose(-1, -2)  # [B, Hkv, T, G, 32 tokens, 32 channels]
    key_words = pack_codes(by_lane, BITS)
    codes, value_scale, value_zero = _codes(_by_token(value))
    by_lane = codes.flatten(-2).unflatten(2, (-1, GROUP)).transpose(-1, -2)  # [B, Hkv, T, Dv, 32 tokens]
    return Outer(key_words, key_scale, key_zero, pack_codes(by_lane, BITS), value_scale, value_zero)


@jit(SUMS)
def _attend_tiles(query, key, value, ones, span, maximum, total, acc, block, bits):
    """`query [rows, D]` of one KV head on tiles `span` of words and scales `key`, `value`; see `cpu._attend_tiles`."""
    rows, dim, value_dim = query.shape[0], query.shape[1], acc.shape[1]
    key_words, key_scale, key_zero = key
    value_words, value_scale, value_zero = value
    words_of_group, words_of_tile = len(bits) * GROUP, len(bits) * value_dim
    weights = np.empty((rows, cpu.CHUNK), np.float32)
    factors, sums = np.empty((rows, max(dim, GROUP)), np.float32), np.empty((rows, 1), np.float32)
    nothing = np.zeros((rows, 1), np.float32)
    for first in range(span[0], span[1], cpu.CHUNK // GROUP):
        count = min(cpu.CHUNK // GROUP, span[1] - first)
        weights[:] = 0
        for tile in range(count):
            sums[:] = 0
            for d in range(dim):
                scale, zero = from_half(key_scale[first + tile, d]), from_half(key_zero[first + tile, d])
                for row in range(rows):
                    factors[row, d] = query[row, d] * scale
                    sums[row, 0] -= query[row, d] * zero / MIDDLE
            for row in range(0, rows, len(block)):
                for group in range(dim // GROUP):
                    for lane in range(0, GROUP, cpu.LANES):
                        at = ((first + tile) * (dim // GROUP) + group) * words_of_group + lane
                        cpu._add_groups(
                            (key_words, ones, None), at, GROUP, 0, factors, group * GROUP,
                            sums if group == 0 else nothing, 0, weights, tile * GROUP + lane, row, block, bits,
                        )  # fmt: skip
        for row in range(rows):
            cpu._update_softmax(weights, count * GROUP, row, maximum, total, acc)
        for tile in range(count):
            for group in range(value_dim // GROUP):
                sums[:] = 0
                for j in range(GROUP):
                    token = (first + tile) * GROUP + j
                    scale, zero = from_half(value_scale[token, group]), from_half(value_zero[token, group])
                    for row in range(rows):
                        weight = weights[row, tile * GROUP + j]
                        factors[row, j] = weight * scale
                        sums[row, 0] -= weight * zero / MIDDLE
                for row in range(0, rows, len(block)):
                    for lane in range(0, GROUP, cpu.LANES):
                        channel = group * GROUP + lane
                        at = (first + tile) * words_of_tile + channel
                        cpu._add_groups(
                            (value_words, ones, None), at, value_dim, 0, factors, 0, sums, 0, acc, channel, row, block,
                            bits,
                        )  # fmt: skip


@jit(SUMS)
def _attend(counter, query, key, value, ones, tiles, windows, parts, block, bits):
    """Each item is one KV head and either its windows or one piece of its tiles; see `cpu._attend`."""
    maxima, totals, accs = parts
    pairs, pieces = maxima.shape[0], maxima.shape[1] - 1
    while True:
        item = take_next(counter)
        if item >= pairs * (pieces + 1):
            return
        pair, piece = item % pairs, item // pairs
        maximum, total, acc = maxima[pair, piece], totals[pair, piece], accs[pair, piece]
        maximum[:], total[:], acc[:] = cpu.LOWEST, 0, 0
        if piece == pieces:
            for window_key, window_value in windows:
                cpu._attend_window(
                    query[pair], window_key[pair], window_value[pair], None, 0, None, maximum, total, acc
                )
        else:
            span = (tiles * piece // pieces, tiles * (piece + 1) // pieces)
            keys = (key[0][pair], key[1][pair], key[2][pair])
            values = (value[0][pair], value[1][pair], value[2][pair])
            _attend_tiles(query[pair], keys, values, ones, span, maximum, total, acc, block, bits)


def attend(query: torch.Tensor, packed: Outer, windows: list[Pair], scale: float) -> torch.Tensor:
    """Decode attention of `query [B, H, 1, D]` over the packed tokens and exact `windows`; `[B, H, 1, Dv]`."""
    batch, heads, _, dim = query.shape
    kv_heads, tiles = packed.key_words.shape[1:3]
    pairs, num_rows, value_dim = batch * kv_heads, heads // kv_heads, packed.value_words.shape[-1]
    block = next((size for size in cpu.BLOCKS if size >= num_rows), cpu.BLOCKS[-1])
    rows = torch.nn.functional.pad((query.float() * scale).reshape(pairs, num_rows, dim), (0, 0, 0, -num_rows % block))
    pieces = min(-(-cpu.PIECES * torch.get_num_threads() // pairs), -(-tiles // (cpu.CHUNK // GROUP)))
    shape = (pairs, pieces + 1, rows.shape[1])
    parts = tuple(np.empty((*shape, *more), np.float32) for more in ((), (), (value_dim,)))

    def array(tensor: torch.Tensor) -> np.ndarray:
        flat = tensor.flatten(0, 1)
        return flat.flatten(1).numpy() if tensor.dtype == torch.int32 else flat.view(torch.int16).numpy()

    ones = np.full(cpu.LANES, 0x3C00, np.int16)  # 1.0 in float16
    key, value = (tuple(map(array, part)) for part in (packed[:3], packed[3:]))
    exact = tuple(tuple(map(cpu.to_array, pair)) for pair in windows)
    args = (rows.numpy(), key, value, ones, tiles, exact, parts, (0,) * block, (0,) * BITS)
    on_threads(_attend, args, pairs * tiles * GROUP // cpu.MIN_TOKENS)
    out = torch.empty(pairs, rows.shape[1], value_dim)
    cpu._merge(parts, None, out.numpy())
    return out[:, :num_rows].reshape(batch, heads, 1, value_dim).to(query.dtype)
