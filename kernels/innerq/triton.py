"""
InnerQ on a GPU: decode attention on the packed groups, and quantization, with the signatures of `reference.py`.

Not yet run on a GPU: tested in Triton's interpreter and compiled ahead of time (`kernels/aot.py`); the block sizes
follow from counted bytes, instructions and registers, not from a measurement.

Decoding is split over tokens. A program takes one KV head, a range of tokens and all query rows of the head's group,
so that every group is unpacked once: unpacking, not reading, is what a program spends most instructions on. The exact
windows are one more range. A second kernel joins the ranges by their log-sum-exp.

Codes are unpacked two at a time. The words of a group hold code i in the low and code i + 16 in the high half of a
register, at the same bits; `1024 + code` in float16 is then one shift and one bit operation away for both. That leaves
a group's numbers in the order 0, 16, 1, 17, ..., called pair order here. Sums do not mind: the queries' channels (for
keys) and the scores' tokens (for values) are brought into the same order.
"""

from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .reference import (
    GROUP,
    KEY_REACH,
    SCALE_DTYPE,
    VALUE_REACH,
    Packed,
    PackedKV,
    code_of_zero,
    fill_groups,
    rows_for_codes,
)

MAX_HEAD_DIM = 256  # beyond it, a program's tiles no longer fit in registers
LOG2_E = tl.constexpr(1.4426950408889634)  # softmax in base 2: the hardware's exponential is exp2

# ---------------------------------------------------------------- unpacking


_code_of_zero = triton.constexpr_function(code_of_zero)


@triton.jit
def _pair_order(index):
    """Where the numbers of groups lie, read in pair order: 0, 16, 1, 17, ..., 15, 31, then 32, 48, ..."""
    return index // 32 * 32 + index % 2 * 16 + index % 32 // 2


@triton.jit
def _two_bit_pairs(first, second):
    """
    The 2-bit plane in words `first` (codes 0 to 15) and `second` (16 to 31), both `[A, B]`, as `[A, B, 2, 2, 2, 2]`
    registers in the order of i = 0 to 15. Each join halves what is left of i; joined values stay in one thread.
    """
    pairs = tl.join((first & 0xFFFF) | (second << 16), ((first >> 16) & 0xFFFF) | (second & -65536))
    pairs = tl.join(pairs, pairs >> 8)
    pairs = tl.join(pairs, pairs >> 4)
    pairs = tl.join(pairs, pairs >> 2)
    return pairs & 0x00030003


@triton.jit
def _one_bit_pairs(word):
    """The same of a 1-bit plane, which is one word."""
    pairs = tl.join(word, word >> 8)
    pairs = tl.join(pairs, pairs >> 4)
    pairs = tl.join(pairs, pairs >> 2)
    pairs = tl.join(pairs, pairs >> 1)
    return pairs & 0x00010001


@triton.jit
def _dequantize(word, scale, zero, inside, LANES: tl.constexpr, BITS: tl.constexpr):
    """
    Groups as the columns of a matrix: `[A * 32, B]`, each column's 32 numbers in pair order; 0 where not `inside`.

    `word [A, B]` points at the groups' first words, the next ones follow LANES further on; `scale` and `zero` point at
    theirs, `zero` is None without hybrid mode.
    """
    # A float16 of these exponent bits is 1024 plus its lowest mantissa bits.
    pairs = _two_bit_pairs(tl.load(word, inside, 0), tl.load(word + LANES, inside, 0)) | 0x64006400
    if BITS == 3:
        pairs |= _one_bit_pairs(tl.load(word + 2 * LANES, inside, 0)) << 2
    elif BITS == 4:
        pairs |= _two_bit_pairs(tl.load(word + 2 * LANES, inside, 0), tl.load(word + 3 * LANES, inside, 0)) << 2
    halves = tl.join(pairs.to(tl.int16), (pairs >> 16).to(tl.int16)).to(tl.float16, bitcast=True)
    codes = tl.reshape(halves, [word.shape[0], word.shape[1], 32])

    middle: tl.constexpr = _code_of_zero(BITS)
    step = tl.load(scale, inside, 0.0)
    if zero is not None:
        offset = tl.where(step.to(tl.int16, bitcast=True) < 0, tl.load(zero, inside, 0.0), -middle * step)
        numbers = (codes - 1024.0) * tl.abs(step)[:, :, None] + offset.to(tl.float16)[:, :, None]
    elif BITS == 2:  # float16 has no 1025.5
        numbers = (codes - 1024.0 - middle) * step[:, :, None]
    else:
        numbers = (codes - (1024.0 + middle)) * step[:, :, None]
    return tl.reshape(tl.permute(numbers, 0, 2, 1), [word.shape[0] * 32, word.shape[1]])


# ---------------------------------------------------------------- attention


@triton.jit
def _cap(scores, softcap):
    """softcap * tanh(scores / softcap), both in base 2; `softcap` None caps nothing."""
    if softcap is not None:
        scores = softcap - 2.0 * softcap / (tl.exp2(scores * (2.0 * LOG2_E / softcap)) + 1.0)
    return scores


@triton.jit
def _add_keys(scores, value, norm, m, l, acc):
    """One step of the running softmax: `scores [M, n]` in base 2, `value [n, Dv]` over their `norm [n]` or None."""
    new_m = tl.maximum(m, tl.max(scores, 1))
    weights = tl.exp2(scores - new_m[:, None])
    shrink = tl.exp2(m - new_m)
    l = l * shrink + tl.sum(weights, 1)
    if norm is None:
        acc = tl.dot(weights.to(value.dtype), value, acc=acc * shrink[:, None])
    else:  # norms may lie beyond float16, what they are of the largest does not
        loudest = tl.max(norm, 0)
        weights *= (norm / loudest)[None, :]
        acc = acc * shrink[:, None] + tl.dot(weights.to(value.dtype), value) * loudest
    return new_m, l, acc


@triton.jit
def _attend_packed(
    query, rotated, head, row, num_rows, scale, softcap, mask, m, l, acc,
    key_words, key_scale, key_norm, key_mean, value_words, value_scale, value_zero, value_norm, first_tile, end_tile,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, KEY_BITS: tl.constexpr, VALUE_BITS: tl.constexpr,
    NORM_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Tiles `first_tile` to `end_tile` of one head. Its packed tensors are given from the head's first element on."""
    NUM_GROUPS: tl.constexpr = triton.cdiv(HEAD_DIM, 32)
    BLOCK_G: tl.constexpr = triton.next_power_of_2(NUM_GROUPS)
    BLOCK_V: tl.constexpr = triton.next_power_of_2(VALUE_DIM)
    channel = _pair_order(tl.arange(0, BLOCK_G * 32))
    is_channel = channel < HEAD_DIM
    rows = query + row[:, None] * HEAD_DIM + channel[None, :]
    rows = tl.load(rows, (row < num_rows)[:, None] & is_channel[None, :], 0.0).to(tl.float32) * scale
    common = tl.zeros([BLOCK_M], tl.float32)  # the logit of the keys' mean
    if key_mean is not None:
        common = tl.sum(rows * tl.load(key_mean + head * (NUM_GROUPS * 32) + channel, is_channel, 0.0)[None, :], 1)
    if rotated is not None:  # with the norm
        rows = rotated + row[:, None] * (NUM_GROUPS * 32) + channel[None, :]
        rows = tl.load(rows, (row < num_rows)[:, None] & (channel < NUM_GROUPS * 32)[None, :], 0.0) * scale
    elif key_norm is not None:
        rows *= tl.load(key_norm + head * (NUM_GROUPS * 32) + channel, is_channel, 0.0)[None, :]
    # Rows are scaled to 1 because q * n may be too large for float16, which is more exact than bfloat16 otherwise.
    size = tl.max(tl.abs(rows), 1)
    rows = (rows / tl.where(size > 0, size, 1.0)[:, None]).to(tl.float16)

    # Both have the groups' 32 numbers in front: keys [groups of channels, slots], values [tiles of slots, channels].
    slot = tl.arange(0, BLOCK_N)
    group = (slot // 32)[None, :] * NUM_GROUPS + tl.arange(0, BLOCK_G)[:, None]
    is_group = tl.arange(0, BLOCK_G)[:, None] < NUM_GROUPS
    lane = (slot % 32)[None, :]
    tile = tl.arange(0, BLOCK_N // 32)[:, None]
    value_channel = tl.arange(0, BLOCK_V)[None, :]
    for first in range(first_tile, end_tile, BLOCK_N // 32):
        is_slot = slot < (end_tile - first) * 32
        here = first * NUM_GROUPS
        key = _dequantize(
            key_words + here * (KEY_BITS * 32) + group * (KEY_BITS * 32) + lane,
            key_scale + here * 32 + group * 32 + lane, None, is_slot[None, :] & is_group, 32, KEY_BITS,
        )  # fmt: skip
        scores = _cap(tl.dot(rows, key) * size[:, None] + common[:, None], softcap)
        if mask is not None:
            is_slot &= tl.load(mask + first * 32 + slot, is_slot, 0) != 0
        scores = tl.where(is_slot[None, :], scores, float("-inf"))
        # The values' tokens come in pair order. Loading the keys in it would make their loads and stores narrow.
        scores = tl.permute(tl.reshape(scores, [BLOCK_M, BLOCK_N // 32, 2, 16]), 0, 1, 3, 2)
        scores = tl.reshape(scores, [BLOCK_M, BLOCK_N])

        channels = (first + tile) * VALUE_DIM + value_channel
        value = _dequantize(
            value_words + (first + tile) * (VALUE_BITS * VALUE_DIM) + value_channel, value_scale + channels,
            None if value_zero is None else value_zero + channels,
            (tile < end_tile - first) & (value_channel < VALUE_DIM), VALUE_DIM, VALUE_BITS,
        )  # fmt: skip
        norm = None
        if value_norm is not None:
            where = _pair_order(slot) if NORM_WIDTH == 32 else slot // 32
            norm = tl.load(value_norm + first * NORM_WIDTH + where, slot < (end_tile - first) * 32, 0.0)
            norm = norm.to(tl.float32)
        m, l, acc = _add_keys(scores, value, norm, m, l, acc)
    return m, l, acc


@triton.jit
def _attend_window(
    query, row, num_rows, scale, softcap, mask, m, l, acc, key, value, num_keys, last_visible,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The exact keys 0 to `last_visible [M]` of one head, of `num_keys`."""
    BLOCK_D: tl.constexpr = triton.next_power_of_2(HEAD_DIM)
    BLOCK_V: tl.constexpr = triton.next_power_of_2(VALUE_DIM)
    channel = tl.arange(0, BLOCK_D)
    is_channel = (channel < HEAD_DIM)[None, :]
    rows = query + row[:, None] * HEAD_DIM + channel[None, :]
    rows = tl.load(rows, (row < num_rows)[:, None] & is_channel, 0.0)
    value_channel = tl.arange(0, BLOCK_V)
    # A window is a few steps. Buffers for more than one of them would set what every program takes of shared memory.
    for first in tl.range(0, num_keys, BLOCK_N, num_stages=1):
        slot = first + tl.arange(0, BLOCK_N)
        is_key = slot < num_keys
        keys = tl.load(key + slot[:, None] * HEAD_DIM + channel[None, :], is_key[:, None] & is_channel, 0.0)
        scores = _cap(tl.dot(rows, tl.trans(keys.to(rows.dtype))) * scale, softcap)
        if mask is not None:
            is_key &= tl.load(mask + slot, is_key, 0) != 0
        scores = tl.where(is_key[None, :] & (slot[None, :] <= last_visible[:, None]), scores, float("-inf"))
        values = value + slot[:, None] * VALUE_DIM + value_channel[None, :]
        values = tl.load(values, (slot < num_keys)[:, None] & (value_channel < VALUE_DIM)[None, :], 0.0)
        m, l, acc = _add_keys(scores, values.to(rows.dtype), None, m, l, acc)
    return m, l, acc


# Lengths change with every token; a kernel compiled for multiples of 16 would be compiled again on the way.
@triton.jit(do_not_specialize=["num_tiles", "tiles_per_program", "num_sinks", "num_recent", "num_rows", "q_len"])
def _attend_range(
    query, rotated, key_words, key_scale, key_norm, key_mean, value_words, value_scale, value_zero, value_norm,
    sink_key, sink_value, recent_key, recent_value, mask, part_out, part_lse,
    scale, softcap, num_tiles, tiles_per_program, num_sinks, num_recent, num_rows, q_len, kv_heads,
    key_words_stride, key_scale_stride, value_words_stride, value_scale_stride, value_norm_stride,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, KEY_BITS: tl.constexpr, VALUE_BITS: tl.constexpr,
    NORM_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program (part, head, block of rows): part 0 is both windows, part p the packed slots of range p - 1."""
    part, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    BLOCK_V: tl.constexpr = triton.next_power_of_2(VALUE_DIM)
    row = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    query += head * num_rows * HEAD_DIM
    if mask is not None:
        mask += head // kv_heads * (num_sinks + num_tiles * 32 + num_recent)
    # A finite least maximum: rows that see no key must not compute inf - inf.
    m = tl.full([BLOCK_M], -1e30, tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)

    if part == 0:
        sink_key += head * num_sinks * HEAD_DIM
        sink_value += head * num_sinks * VALUE_DIM
        recent_key += head * num_recent * HEAD_DIM
        recent_value += head * num_recent * VALUE_DIM
        m, l, acc = _attend_window(
            query, row, num_rows, scale, softcap, mask, m, l, acc, sink_key, sink_value, num_sinks,
            row * 0 + num_sinks, HEAD_DIM, VALUE_DIM, BLOCK_N,
        )  # fmt: skip
        if mask is not None:
            mask += num_sinks + num_tiles * 32
        own = num_recent - q_len + row % q_len  # a query's own token, the last that it sees
        m, l, acc = _attend_window(
            query, row, num_rows, scale, softcap, mask, m, l, acc, recent_key, recent_value, num_recent, own,
            HEAD_DIM, VALUE_DIM, BLOCK_N,
        )  # fmt: skip
    else:
        if mask is not None:
            mask += num_sinks
        if rotated is not None:
            rotated += head * num_rows * (tl.cdiv(HEAD_DIM, 32) * 32)
        if value_zero is not None:
            value_zero += head * value_scale_stride
        if value_norm is not None:
            value_norm += head * value_norm_stride
        first_tile = (part - 1) * tiles_per_program
        m, l, acc = _attend_packed(
            query, rotated, head, row, num_rows, scale, softcap, mask, m, l, acc,
            key_words + head * key_words_stride, key_scale + head * key_scale_stride, key_norm, key_mean,
            value_words + head * value_words_stride, value_scale + head * value_scale_stride, value_zero, value_norm,
            first_tile, tl.minimum(first_tile + tiles_per_program, num_tiles),
            HEAD_DIM, VALUE_DIM, KEY_BITS, VALUE_BITS, NORM_WIDTH, BLOCK_M, BLOCK_N,
        )  # fmt: skip

    channel = tl.arange(0, BLOCK_V)
    row_of_part = (head * tl.num_programs(0) + part) * num_rows + row
    total = tl.where(l > 0, l, 1.0)
    tl.store(part_lse + row_of_part, tl.where(l > 0, m + tl.log2(total), float("-inf")), row < num_rows)
    out = acc / total[:, None]
    where = part_out + row_of_part[:, None] * VALUE_DIM + channel[None, :]
    tl.store(where, out, (row < num_rows)[:, None] & (channel < VALUE_DIM)[None, :])


@triton.jit(do_not_specialize=["num_parts", "num_rows", "q_len"])
def _merge_parts(
    part_out, part_lse, sinks, out, num_parts, num_rows, q_len, kv_heads,
    VALUE_DIM: tl.constexpr, BLOCK_PARTS: tl.constexpr,
):  # fmt: skip
    """
    Program (row, head): joins the parts `[heads, num_parts, num_rows, Dv]` by the log-sum-exp of each, and the learned
    sink of the row's query head, if there are `sinks`.
    """
    row, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    BLOCK_V: tl.constexpr = triton.next_power_of_2(VALUE_DIM)
    channel = tl.arange(0, BLOCK_V)
    is_channel = channel < VALUE_DIM
    m = -1e30
    total = 0.0
    if sinks is not None:
        m = tl.load(sinks + head % kv_heads * (num_rows // q_len) + row // q_len).to(tl.float32) * LOG2_E
        total = 1.0
    acc = tl.zeros([BLOCK_V], tl.float32)
    for first in range(0, num_parts, BLOCK_PARTS):
        part = first + tl.arange(0, BLOCK_PARTS)
        is_part = part < num_parts
        where = (head * num_parts + part) * num_rows + row
        lse = tl.load(part_lse + where, is_part, float("-inf"))
        new_m = tl.maximum(m, tl.max(lse, 0))
        weights = tl.exp2(lse - new_m)
        shrink = tl.exp2(m - new_m)
        where = where[:, None] * VALUE_DIM + channel[None, :]
        outs = tl.load(part_out + where, is_part[:, None] & is_channel[None, :], 0.0)
        total = total * shrink + tl.sum(weights, 0)
        acc = acc * shrink + tl.sum(outs * weights[:, None], 0)
        m = new_m
    acc = acc / tl.where(total > 0, total, 1.0)
    tl.store(out + (head * num_rows + row) * VALUE_DIM + channel, acc.to(out.dtype.element_ty), is_channel)


class Blocks(NamedTuple):
    """How one launch of `_attend_range` is cut: query rows and tokens at a time, warps and stages of a program."""

    rows: int
    tokens: int
    num_warps: int
    num_stages: int


def choose_blocks(num_rows: int, head_dim: int) -> Blocks:
    """
    A matrix unit takes 16 rows at least. Twice as many, and 64 tokens at a time, are what still fits in the registers
    of every GPU in `kernels/aot.py` up to head_dim 128; beyond it, half of both. 3 stages keep the words of two steps
    under way, some 14 KiB a program.
    """
    if head_dim > 128:
        return Blocks(16, 32, num_warps=4, num_stages=3)
    return Blocks(16 if num_rows <= 16 else 32, 64, num_warps=4, num_stages=3)


def packed_attention(
    query: torch.Tensor,
    packed: PackedKV,
    exact: list[tuple[torch.Tensor, torch.Tensor]],
    *,
    scale: float,
    key_mask: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """`reference.packed_attention` in two launches. No step waits for the device."""
    batch, heads, q_len, head_dim = query.shape
    kv_heads, num_tiles, value_dim = packed.key.words.shape[1], packed.num_slots // GROUP, packed.value.words.shape[-1]
    num_rows = heads // kv_heads * q_len
    if query.dtype not in (torch.float16, torch.bfloat16) or max(head_dim, value_dim) > MAX_HEAD_DIM:
        raise ValueError(
            f"InnerQ's Triton kernel attends in float16 or bfloat16 up to head_dim {MAX_HEAD_DIM}, not in "
            f"{query.dtype} with head_dim {max(head_dim, value_dim)}: use the reference's packed_attention."
        )
    (sink_key, sink_value), (recent_key, recent_value) = exact
    blocks = choose_blocks(num_rows, max(head_dim, value_dim))
    row_blocks = triton.cdiv(num_rows, blocks.rows)
    tiles_per_program = _tiles_per_program(num_tiles, batch * kv_heads * row_blocks, query.device)
    num_parts = 1 + triton.cdiv(num_tiles, tiles_per_program)

    # [B * Hkv, ...]: no copy for what a store's buffers hand out.
    key_words, key_scale = packed.key.words.flatten(0, 1), packed.key.scale.flatten(0, 1)
    value_words, value_scale = packed.value.words.flatten(0, 1), packed.value.scale.flatten(0, 1)
    value_zero = None if packed.value.zero is None else packed.value.zero.flatten(0, 1)
    value_norm = None if packed.value_norm is None else packed.value_norm.flatten(0, 1)
    num_sinks, num_recent = sink_key.shape[2], recent_key.shape[2]
    rotated = rows_for_codes(query.reshape(batch, kv_heads, num_rows, -1), packed) if packed.is_rotated else None
    part_out = query.new_empty(batch * kv_heads, num_parts, num_rows, value_dim, dtype=torch.float32)
    part_lse = query.new_empty(batch * kv_heads, num_parts, num_rows, dtype=torch.float32)
    out = query.new_empty(batch, heads, q_len, value_dim)
    with torch.cuda.device_of(query):  # Triton launches on the current device, not on its arguments'
        _attend_range[(num_parts, batch * kv_heads, row_blocks)](
            query.contiguous(), rotated, key_words, key_scale, packed.key_norm, packed.key_mean,
            value_words, value_scale, value_zero, value_norm,
            sink_key.contiguous(), sink_value.contiguous(), recent_key.contiguous(), recent_value.contiguous(),
            _slot_mask(packed, key_mask, batch, num_sinks, num_recent), part_out, part_lse,
            scale * LOG2_E.value, None if softcap is None else softcap * LOG2_E.value,
            num_tiles, tiles_per_program, num_sinks, num_recent, num_rows, q_len, kv_heads,
            key_words.stride(0), key_scale.stride(0), value_words.stride(0), value_scale.stride(0),
            0 if value_norm is None else value_norm.stride(0),
            HEAD_DIM=head_dim, VALUE_DIM=value_dim, KEY_BITS=packed.key.bits, VALUE_BITS=packed.value.bits,
            NORM_WIDTH=1 if value_norm is None else value_norm.shape[2],
            BLOCK_M=blocks.rows, BLOCK_N=blocks.tokens, num_warps=blocks.num_warps, num_stages=blocks.num_stages,
        )  # fmt: skip
        _merge_parts[(num_rows, batch * kv_heads)](
            part_out,
            part_lse,
            sinks,
            out,
            num_parts,
            num_rows,
            q_len,
            kv_heads,
            VALUE_DIM=value_dim,
            BLOCK_PARTS=16,
            num_warps=4,
        )
    return out


def _tiles_per_program(num_tiles: int, num_programs: int, device: torch.device) -> int:
    """
    Splits the tiles so that all programs together fill the GPU once: four of 4 warps fit on a multiprocessor, and a
    second wave would be nearly empty. Fewer than 8 tiles are not worth the part that they write.
    """
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    parts = max(1, 4 * processors // num_programs - 1)
    return max(8, triton.cdiv(num_tiles, parts))


def _slot_mask(
    packed: PackedKV, key_mask: torch.Tensor | None, batch: int, num_sinks: int, num_recent: int
) -> torch.Tensor | None:
    """`key_mask [B, tokens]` with the packed tokens spread over their slots; None if every key is seen."""
    if packed.alive is None:
        return key_mask if key_mask is None else key_mask.contiguous()
    alive = packed.alive.expand(batch, -1)
    if key_mask is None:
        return torch.nn.functional.pad(alive, (num_sinks, num_recent), value=True)
    # Not by boolean indexing, which waits for the device to count: the nth living slot holds the nth token.
    token = num_sinks + (packed.alive.cumsum(0) - 1).clamp(min=0)
    recent = key_mask[:, key_mask.shape[1] - num_recent :]
    return torch.cat([key_mask[:, :num_sinks], key_mask[:, token] & alive, recent], 1)


# ---------------------------------------------------------------- quantization


@triton.jit
def _round_to_even(x):
    """To the nearest integer, halves to the even one, as torch does. Up to 2^22; what is larger is clamped anyway."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _to_codes(groups, scale, middle, highest):
    """`groups [L, 32]` over the float16 `scale [L]`, plus `middle`, rounded and clamped; 0 where the scale is 0."""
    step = scale.to(tl.float32)[:, None]
    codes = _round_to_even(tl.div_rn(groups, tl.where(step > 0, step, 1.0)) + middle)
    return tl.where(step > 0, tl.minimum(tl.maximum(codes, 0.0), highest), 0.0)


@triton.jit
def _fold_sum(x):
    """Sum over `[L, 32]` in the reference's order."""
    for halvings in tl.static_range(5):
        x = tl.sum(tl.reshape(x, [x.shape[0], 2, 16 // 2**halvings]), 1)
    return tl.reshape(x, [x.shape[0]])


@triton.jit
def _quantize_lanes(
    groups, key_norm, key_mean, value_norm, words, scale, zero, num_groups, num_lanes, kv_heads,
    stride_batch, stride_head, stride_tile, stride_group, stride_lane, stride_number,
    BITS: tl.constexpr, HYBRID: tl.constexpr, REACH: tl.constexpr,
):  # fmt: skip
    """Program (tile, head, 32 lanes of a row of groups): their words `[bits, lanes]` and scales `[lanes]`."""
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    blocks = tl.cdiv(num_lanes, 32)
    group = tl.program_id(2) // blocks
    lane = tl.program_id(2) % blocks * 32 + tl.arange(0, 32)
    number = tl.arange(0, 32)
    is_lane = lane < num_lanes
    groups += head // kv_heads * stride_batch + head % kv_heads * stride_head
    groups += tile.to(tl.int64) * stride_tile + group * stride_group
    x = tl.load(groups + lane[:, None] * stride_lane + number[None, :] * stride_number, is_lane[:, None], 0.0)
    x = x.to(tl.float32)
    if key_mean is not None:
        x -= tl.load(key_mean + (head * num_groups + group) * 32 + number)[None, :]
    if key_norm is not None:
        norm = tl.load(key_norm + (head * num_groups + group) * 32 + number)
        x = tl.div_rn(x, tl.broadcast_to(norm[None, :], [32, 32]))
    if value_norm is not None:
        norm = tl.load(value_norm + (head * tl.num_programs(0) + tile) * 32 + number).to(tl.float32)
        x = tl.div_rn(x, tl.broadcast_to(norm[None, :], [32, 32]))

    middle: tl.constexpr = _code_of_zero(BITS)
    steps: tl.constexpr = 2**BITS - 1.0
    step = tl.minimum(tl.div_rn(tl.max(tl.abs(x), 1) * REACH, middle), 65504.0).to(tl.float16)
    codes = _to_codes(x, step, middle, 2 * middle)
    row = (head * tl.num_programs(0) + tile) * num_groups + group
    if HYBRID:
        offset = tl.minimum(tl.maximum(tl.min(x, 1), -65504.0), 65504.0).to(tl.float16)
        low = offset.to(tl.float32)
        asym_step = tl.div_rn(tl.max(x, 1) - low, steps)
        asym_step = tl.minimum(tl.maximum(asym_step, 0.0), 65504.0).to(tl.float16)
        asym_codes = _to_codes(x - low[:, None], asym_step, 0.0, steps)
        error = _fold_sum(tl.abs(x - (codes - middle) * step.to(tl.float32)[:, None]))
        asym_error = _fold_sum(tl.abs(x - asym_codes * asym_step.to(tl.float32)[:, None] - low[:, None]))
        is_asymmetric = asym_error < error
        codes = tl.where(is_asymmetric[:, None], asym_codes, codes)
        # The sign bit by hand: minus would turn 0 into 0 and lose the mode of a group of equal numbers.
        negative = (asym_step.to(tl.int16, bitcast=True) | -32768).to(tl.float16, bitcast=True)
        step = tl.where(is_asymmetric, negative, step)
        tl.store(zero + row * num_lanes + lane, tl.where(is_asymmetric, offset, 0.0), is_lane)
    tl.store(scale + row * num_lanes + lane, step, is_lane)

    codes = codes.to(tl.int32)
    words += row * BITS * num_lanes + lane
    for plane in tl.static_range(BITS // 2):
        shifted = tl.reshape((codes >> 2 * plane) & 3, [32, 2, 16]) << (2 * tl.arange(0, 16))[None, None, :]
        pair = (2 * plane + tl.arange(0, 2)) * num_lanes
        tl.store(words[:, None] + pair[None, :], tl.sum(shifted, 2), is_lane[:, None])
    if BITS % 2:
        tl.store(words + (BITS - 1) * num_lanes, tl.sum(((codes >> (BITS - 1)) & 1) << number[None, :], 1), is_lane)


def quantize_keys(
    key: torch.Tensor, bits: int, key_norm: torch.Tensor | None = None, key_mean: torch.Tensor | None = None
) -> Packed:
    """`reference.quantize_keys`, bit for bit."""
    tiles = key.unflatten(-1, (-1, GROUP)).unflatten(2, (-1, GROUP)).transpose(3, 4)  # [B, Hkv, T, G, token, channel]
    return _quantize(tiles, bits, key_norm, key_mean, None, hybrid=False, reach=KEY_REACH[bits])


def quantize_values(
    value: torch.Tensor, bits: int, hybrid: bool = False, value_norm: torch.Tensor | None = None
) -> Packed:
    """`reference.quantize_values`, bit for bit."""
    value_norm = None if value_norm is None else value_norm.expand(-1, -1, -1, GROUP).contiguous()
    tiles = value.unflatten(2, (-1, GROUP)).transpose(-1, -2)  # [B, Hkv, T, Dv, token]
    words, scale, zero = _quantize(tiles.unsqueeze(3), bits, None, None, value_norm, hybrid, VALUE_REACH[bits])
    return Packed(words.squeeze(3), scale.squeeze(3), None if zero is None else zero.squeeze(3))


def _quantize(
    groups: torch.Tensor,
    bits: int,
    key_norm: torch.Tensor | None,
    key_mean: torch.Tensor | None,
    value_norm: torch.Tensor | None,
    hybrid: bool,
    reach: float,
) -> Packed:
    """`groups [B, Hkv, T, G, lanes, 32]`, strided as they come."""
    batch, kv_heads, num_tiles, num_groups, num_lanes, _ = groups.shape
    words = groups.new_empty(*groups.shape[:4], bits, num_lanes, dtype=torch.int32)
    scale = groups.new_empty(groups.shape[:5], dtype=SCALE_DTYPE)
    zero = torch.empty_like(scale) if hybrid else None
    with torch.cuda.device_of(groups):
        _quantize_lanes[(num_tiles, batch * kv_heads, num_groups * triton.cdiv(num_lanes, 32))](
            groups, key_norm, key_mean, value_norm, words, scale, zero, num_groups, num_lanes, kv_heads,
            *groups.stride(),
            # A fused multiply-add would round the errors otherwise than the reference.
            BITS=bits, HYBRID=hybrid, REACH=reach, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return Packed(words, scale, zero)


# ---------------------------------------------------------------- for kernels/aot.py


def example_calls() -> None:
    """Calls on tensors without data that launch every kernel, in every configuration that there is."""
    tokens, kv_heads = 4096, 8
    empty = partial(torch.empty, device="meta")
    for dtype, dim, rows, key_bits, value_bits, hybrid, masked, is_rotated in (
        (torch.bfloat16, 128, 4, 4, 3, False, False, False),
        (torch.bfloat16, 128, 4, 3, 3, False, False, False),
        (torch.bfloat16, 128, 8, 3, 2, True, True, False),
        (torch.float16, 128, 32, 4, 4, True, True, True),
        (torch.float16, 64, 8, 2, 2, False, False, False),
        (torch.bfloat16, 96, 24, 3, 3, False, True, True),
        (torch.float16, 80, 1, 4, 3, False, False, False),
        (torch.bfloat16, 256, 8, 4, 3, False, False, True),
        (torch.bfloat16, 256, 64, 4, 2, True, True, False),
    ):
        value = empty(1, kv_heads, tokens, dim, dtype=dtype)
        key, norm = fill_groups(value), fill_groups(empty(1, kv_heads, 1, dim, dtype=torch.float32))
        # The paper's presets have one norm for a tile.
        value_norm = empty(1, kv_heads, tokens // GROUP, 32 if key_bits == 4 else 1, dtype=torch.bfloat16)
        packed = PackedKV(
            quantize_keys(key, key_bits, norm, norm),
            quantize_values(value, value_bits, hybrid, value_norm),
            norm,
            norm,
            None,
            value_norm,
            is_rotated,
        )
        query = empty(1, kv_heads * rows, 1, dim, dtype=dtype)
        sink, recent = (empty(1, kv_heads, n, dim, dtype=dtype) for n in (32, 97))
        mask = empty(1, 32 + tokens + 97, dtype=torch.bool) if masked else None
        # A model has learned sinks, a cap on its logits, or neither.
        others = (
            dict(sinks=empty(kv_heads * rows, dtype=dtype)) if dim == 64 else dict(softcap=50.0 if masked else None)
        )
        packed_attention(query, packed, [(sink, sink), (recent, recent)], scale=0.1, key_mask=mask, **others)
