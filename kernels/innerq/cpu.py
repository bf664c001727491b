"""
InnerQ on CPUs, compiled by numba: the same functions as `reference.py`, on threads.

Both halves of attention are one loop, `_add_groups`: a row of lanes (tokens for scores, channels for outputs) takes
the same code out of each word, multiplies it with one number per query row and adds it up, so unpacking is paid once
for all rows of a KV head, and no sum goes across lanes. Its vector code is written out, because a compiler that meets
the loop would keep the sums in memory.
"""

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..jit import SUMS, exp, jit, on_threads, take_next
from ..vectors import LANES, Vectors
from . import reference
from .cpu_floats import to_float
from .cpu_pack import dequantize, quantize_keys, quantize_values, to_array
from .reference import GROUP, Packed, PackedKV

BLOCKS = (1, 2, 4, 8)  # query rows that share an unpacked group; more would not fit into registers
CHUNK = 512  # tokens between two updates of the running softmax: scores stay in the first-level cache
PIECES = 16  # work items per thread, so that one whose core is taken for a while leaves little to wait for
MIN_TOKENS = 4096  # over all KV heads, for each thread: fewer cost more to hand over than they save
LOWEST = np.finfo(np.float32).min

__all__ = ["dequantize", "packed_attention", "quantize_keys", "quantize_values"]


# ---------------------------------------------------------------- packed groups


class _Codes(Vectors):
    """Takes codes, scales and zeros out of packed groups."""

    def code(self, words, index):
        """Code `index` of every lane, as floats; `reference._planes` says where its bits lie."""
        code = self.constant(self.integer, 0)
        for low, width, first in reference._planes(len(words)):
            word, shift = words[first + index * width // 32], index * width % 32 - low
            amount = self.constant(self.integer, abs(shift))
            moved = self.builder.lshr(word, amount) if shift >= 0 else self.builder.shl(word, amount)
            mask = self.constant(self.integer, (2**width - 1) << low)
            code = self.builder.or_(code, self.builder.and_(moved, mask))
        return self.builder.sitofp(code, self.float)

    def from_half(self, bits):
        """Finite float16s without their sign, as floats; see `_from_half`."""
        magnitude = self.builder.and_(bits, self.constant(self.integer, 0x7FFF))
        shifted = self.builder.shl(magnitude, self.constant(self.integer, 13))
        return self.builder.fmul(self.builder.bitcast(shifted, self.float), self.constant(self.float, 2.0**112))

    def sign(self, bits):
        return self.builder.and_(bits, self.constant(self.integer, 0x8000))

    def scale_and_offset(self, scale, zero, bits):
        """code * scale + offset is the number; `zero` is None without the hybrid form."""
        half_kind = ir.VectorType(ir.IntType(16), LANES)
        half = self.builder.zext(self.load(scale, half_kind), self.integer)
        step = self.from_half(half)
        offset = self.builder.fmul(step, self.constant(self.float, -reference.code_of_zero(bits)))
        if zero is not None:
            number = self.builder.zext(self.load(zero, half_kind), self.integer)
            sign = self.builder.shl(self.sign(number), self.constant(self.integer, 16))
            magnitude = self.builder.bitcast(self.from_half(number), self.integer)
            minimum = self.builder.bitcast(self.builder.or_(magnitude, sign), self.float)
            is_asymmetric = self.builder.icmp_unsigned("!=", self.sign(half), self.constant(self.integer, 0))
            offset = self.builder.select(is_asymmetric, minimum, offset)
        return step, offset


@intrinsic
def _add_groups(
    typing,
    packed,  # words, scale, zero or None: flat arrays
    word_at,  # of the first lane's first word; the next word of the group is `stride` further
    stride,
    scale_at,
    factors,  # [rows, n] and [rows, groups]: numbers to multiply codes with, and their sums
    factor_at,
    sums,
    sum_at,
    out,  # [rows, lanes]
    out_at,
    row,  # first row
    rows,  # tuples whose lengths are constants of the compiled code
    bits,
):
    """out[row + r, out_at + lane] += sum over the codes of that lane's group of factors[row + r, factor_at + code]."""
    args = (packed, word_at, stride, scale_at, factors, factor_at, sums, sum_at, out, out_at, row, rows, bits)
    hybrid = not isinstance(packed.types[2], types.NoneType)

    def codegen(context, builder, signature, values):
        write = _Codes(builder)

        def array(kind, value):
            return context.make_array(kind)(context, builder, value)

        def at(kind, value, row, column):
            """Address of `[row, column]` in a two-dimensional array."""
            held = array(kind, value)
            width = builder.extract_value(held.shape, 1)
            return builder.gep(held.data, [builder.add(builder.mul(row, width), column)])

        def index(value):
            return ir.Constant(ir.IntType(64), value)

        packed_, word_at_, stride_, scale_at_, factors_, factor_at_, sums_, sum_at_, out_, out_at_, row_, *_ = values
        parts = [array(kind, builder.extract_value(packed_, i)).data for i, kind in enumerate(packed.types[:2])]
        word_addresses = [builder.add(word_at_, builder.mul(stride_, index(i))) for i in range(bits.count)]
        words = [write.load(builder.gep(parts[0], [address]), write.integer) for address in word_addresses]
        row_numbers = [builder.add(row_, index(i)) for i in range(rows.count)]

        totals = [write.constant(write.float, 0.0)] * rows.count
        factor_rows = [at(factors, factors_, number, factor_at_) for number in row_numbers]
        for j in range(GROUP):
            code = write.code(words, j)
            for i, address in enumerate(factor_rows):
                factor = write.splat(builder.load(builder.gep(address, [index(j)])))
                totals[i] = write.multiply_add(factor, code, totals[i])

        zero = None
        if hybrid:
            zero_data = array(packed.types[2], builder.extract_value(packed_, 2)).data
            zero = builder.gep(zero_data, [scale_at_])
        step, offset = write.scale_and_offset(builder.gep(parts[1], [scale_at_]), zero, bits.count)
        for i, number in enumerate(row_numbers):
            factor_sum = write.splat(builder.load(at(sums, sums_, number, sum_at_)))
            target = at(out, out_, number, out_at_)
            result = write.multiply_add(step, totals[i], write.load(target, write.float))
            result = write.multiply_add(offset, factor_sum, result)
            builder.store(result, builder.bitcast(target, write.float.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*args), codegen


# ---------------------------------------------------------------- attention


@jit(SUMS)
def _cap(scores, count, row, softcap):
    """`scores[row, :count]` as softcap * tanh(score / softcap)."""
    for i in range(count):
        double = scores[row, i] * (np.float32(2) / softcap)
        growth = exp(min(double, np.float32(80)))
        scores[row, i] = softcap - np.float32(2) * softcap / (growth + np.float32(1))


@jit(SUMS)
def _update_softmax(scores, count, row, maximum, total, acc):
    """Turns `scores[row, :count]` into weights of the running softmax `maximum, total [rows]`, `acc [rows, Dv]`."""
    highest = maximum[row]
    for i in range(count):
        highest = max(highest, scores[row, i])
    shrink = exp(maximum[row] - highest)
    maximum[row] = highest
    for d in range(acc.shape[1]):
        acc[row, d] *= shrink
    added = np.float32(0)
    for i in range(count):
        weight = exp(scores[row, i] - highest)
        scores[row, i] = weight
        added += weight
    total[row] = total[row] * shrink + added


@jit(SUMS)
def _attend_window(query, key, value, mask, own, softcap, maximum, total, acc):
    """Exact tokens `key [n, D]`, `value [n, Dv]`, the last `own` of which are causal among themselves."""
    rows, count = query.shape[0], key.shape[0]
    scores = np.empty((rows, count), np.float32)
    floats = np.empty(max(key.shape[1], value.shape[1]), np.float32)
    for i in range(count):
        for d in range(key.shape[1]):
            floats[d] = to_float(key[i, d])
        for row in range(rows):
            score = np.float32(0)
            for d in range(key.shape[1]):
                score += query[row, d] * floats[d]
            scores[row, i] = score
    for row in range(rows):
        if softcap is not None:
            _cap(scores, count, row, softcap)
        for i in range(count):
            hidden = own > 0 and i > count - own + row % own
            if mask is not None:
                hidden = hidden or not mask[i]
            if hidden:
                scores[row, i] = -np.inf
        _update_softmax(scores, count, row, maximum, total, acc)
    for i in range(count):
        for d in range(value.shape[1]):
            floats[d] = to_float(value[i, d])
        for row in range(rows):
            weight = scores[row, i]
            if weight != 0:  # a hidden token may hold anything
                for d in range(value.shape[1]):
                    acc[row, d] += weight * floats[d]


@jit(SUMS)
def _attend_tiles(
    query,  # [rows, D]
    sums,  # [rows, G]
    common,  # [rows]: added to every score
    key,  # words, scale, zero of the whole layer, flat, and where this KV head's begin
    value,
    starts,
    mask,  # [N] or None
    norms,  # of the values of each token of the whole layer, flat, or None
    softcap,  # or None
    tiles,  # first and one past the last
    maximum,
    total,
    acc,
    block,  # tuples, for their lengths: rows of a block, bits of a key and of a value code
    key_bits,
    value_bits,
):
    groups, value_dim = sums.shape[1], acc.shape[1]
    weights = np.empty((query.shape[0], CHUNK), np.float32)
    weight_sums = np.empty((query.shape[0], CHUNK // GROUP), np.float32)
    loudness = np.empty(CHUNK, np.float32)  # of the chunk's values
    key_words, key_scales, value_words, value_scales, value_norms = starts
    for first in range(tiles[0], tiles[1], CHUNK // GROUP):
        count = min(CHUNK // GROUP, tiles[1] - first)
        if norms is not None:  # once for all rows
            for i in range(count * GROUP):
                loudness[i] = to_float(norms[value_norms + first * GROUP + i])
        for row in range(query.shape[0]):
            weights[row] = common[row]
        for row in range(0, query.shape[0], len(block)):
            for tile in range(count):
                for group in range(groups):
                    at = (first + tile) * groups + group
                    for lane in range(0, GROUP, LANES):
                        word_at = key_words + at * len(key_bits) * GROUP + lane
                        scale_at = key_scales + at * GROUP + lane
                        out_at = tile * GROUP + lane
                        _add_groups(
                            key, word_at, GROUP, scale_at, query, group * GROUP, sums, group, weights, out_at, row,
                            block, key_bits,
                        )  # fmt: skip
        # Most chunks of a padded or thinned-out cache hide nothing.
        hides = mask is not None and not mask[first * GROUP : (first + count) * GROUP].all()
        for row in range(query.shape[0]):
            if softcap is not None:
                _cap(weights, count * GROUP, row, softcap)
            if mask is not None and hides:
                for i in range(count * GROUP):
                    if not mask[first * GROUP + i]:
                        weights[row, i] = -np.inf
            _update_softmax(weights, count * GROUP, row, maximum, total, acc)
            if norms is not None:
                for i in range(count * GROUP):
                    weights[row, i] *= loudness[i]
            for tile in range(count):
                weight_sums[row, tile] = weights[row, tile * GROUP : (tile + 1) * GROUP].sum()
        for row in range(0, query.shape[0], len(block)):
            for tile in range(count):
                for lane in range(0, value_dim, LANES):
                    word_at = value_words + (first + tile) * len(value_bits) * value_dim + lane
                    scale_at = value_scales + (first + tile) * value_dim + lane
                    _add_groups(
                        value, word_at, value_dim, scale_at, weights, tile * GROUP, weight_sums, tile, acc, lane, row,
                        block, value_bits,
                    )  # fmt: skip


@jit(SUMS)
def _attend(
    counter,
    query,  # [B * Hkv, rows, D]
    asked,  # the same as `reference.rows_for_codes` has it, and its sums over groups
    sums,
    common,  # [B * Hkv, rows]: the logit of the keys' mean
    key,
    value,
    norms,  # of the values of each token, flat, or None
    strides,  # elements per KV head in words and scales of keys and of values, and in norms
    tiles,
    sink,
    recent,
    masks,  # [B, ...] or None: of sinks, packed slots, recent tokens
    own,
    softcap,
    parts,  # maximum, total [B * Hkv, pieces + 1, rows] and acc [..., Dv]
    block,
    key_bits,
    value_bits,
):
    """Each item is one KV head and either its windows or one piece of its tiles."""
    maxima, totals, accs = parts
    pairs, pieces = maxima.shape[0], maxima.shape[1] - 1
    while True:
        item = take_next(counter)
        if item >= pairs * (pieces + 1):
            return
        pair, piece = item % pairs, item // pairs
        maximum, total, acc = maxima[pair, piece], totals[pair, piece], accs[pair, piece]
        maximum[:], total[:], acc[:] = LOWEST, 0, 0
        row = 0 if masks is None else pair // (pairs // masks[0].shape[0])
        if piece == pieces:
            sink_mask, recent_mask = (None, None) if masks is None else (masks[0][row], masks[2][row])
            _attend_window(query[pair], sink[0][pair], sink[1][pair], sink_mask, 0, softcap, maximum, total, acc)
            _attend_window(
                query[pair], recent[0][pair], recent[1][pair], recent_mask, own, softcap, maximum, total, acc
            )
        else:
            starts = (
                pair * strides[0], pair * strides[1], pair * strides[2], pair * strides[3], pair * strides[4],
            )  # fmt: skip
            span = (tiles * piece // pieces, tiles * (piece + 1) // pieces)
            mask = None if masks is None else masks[1][row]
            _attend_tiles(
                asked[pair], sums[pair], common[pair], key, value, starts, mask, norms, softcap, span, maximum,
                total, acc, block, key_bits, value_bits,
            )  # fmt: skip


@jit(SUMS)
def _merge(parts, sinks, out):
    """
    Joins the partial softmaxes of every KV head, and `sinks [Hkv, rows]` or None, into `out [B * Hkv, rows, Dv]`; rows
    without a key become 0.
    """
    maxima, totals, accs = parts
    for pair in range(out.shape[0]):
        for row in range(out.shape[1]):
            highest = maxima[pair, :, row].max()
            total = np.float32(0)
            if sinks is not None:
                sink = sinks[pair % sinks.shape[0], row]
                highest = max(highest, sink)
                total = exp(sink - highest)
            out[pair, row] = 0
            for piece in range(maxima.shape[1]):
                factor = exp(maxima[pair, piece, row] - highest)
                total += totals[pair, piece, row] * factor
                for d in range(out.shape[2]):
                    out[pair, row, d] += accs[pair, piece, row, d] * factor
            if total != 0:
                out[pair, row] /= total


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
    """As `reference.packed_attention`, for any number of queries, in little memory: see there."""
    value_dim = packed.value.words.shape[-1]
    if value_dim % LANES:
        return reference.packed_attention(
            query, packed, exact, scale=scale, key_mask=key_mask, sinks=sinks, softcap=softcap
        )
    batch, heads, q_len, _ = query.shape
    kv_heads, tiles = packed.key.words.shape[1:3]
    pairs, num_rows = batch * kv_heads, heads // kv_heads * q_len
    block = next((size for size in BLOCKS if size >= num_rows), BLOCKS[-1])

    rows = (query.detach().float() * scale).reshape(batch, kv_heads, num_rows, -1)
    rows = torch.nn.functional.pad(rows, (0, 0, 0, -num_rows % block))
    filled, mean = reference.fill_groups(rows), packed.key_mean
    asked = reference.rows_for_codes(filled, packed).flatten(0, 1)
    common = rows.new_zeros(rows.shape[:3]) if mean is None else (filled * mean).sum(-1)
    rows, common = rows.flatten(0, 1), common.flatten(0, 1)
    threads = torch.get_num_threads()
    pieces = min(-(-PIECES * threads // pairs), -(-tiles // (CHUNK // GROUP)))
    parts = [np.empty((pairs, pieces + 1, rows.shape[1], *more), np.float32) for more in ((), (), (value_dim,))]
    key, value = _flat(packed.key), _flat(packed.value)
    norms, norm_stride = _norms(packed.value_norm)
    sink, recent = (tuple(to_array(tensor) for tensor in pair) for pair in exact)
    args = (
        rows.numpy(),
        asked.numpy(),
        asked.unflatten(-1, (-1, GROUP)).sum(-1).numpy(),
        common.numpy(),
        key[0],
        value[0],
        norms,
        (*key[1], *value[1], norm_stride),
        tiles,
        sink,
        recent,
        _masks(packed, key_mask, sink[0].shape[1], recent[0].shape[1], batch),
        q_len,
        None if softcap is None else np.float32(softcap),
        tuple(parts),
        (0,) * block,
        (0,) * packed.key.bits,
        (0,) * packed.value.bits,
    )
    on_threads(_attend, args, pairs * packed.num_slots // MIN_TOKENS)
    out = torch.empty(pairs, rows.shape[1], value_dim, dtype=torch.float32, device="cpu")
    _merge(tuple(parts), _sinks_of_rows(sinks, kv_heads, q_len, rows.shape[1]), out.numpy())
    return out[:, :num_rows].reshape(batch, heads, q_len, value_dim).to(query.dtype)


def _sinks_of_rows(sinks: torch.Tensor | None, kv_heads: int, q_len: int, rows: int) -> np.ndarray | None:
    """Learned sinks `[H]` as `[Hkv, rows]`, where a row is (query head of the group, position), or filled up."""
    if sinks is None:
        return None
    by_row = sinks.detach().float().view(kv_heads, -1).repeat_interleave(q_len, 1)
    return torch.nn.functional.pad(by_row, (0, rows - by_row.shape[1])).numpy()


def _norms(value_norm: torch.Tensor | None) -> tuple[np.ndarray | None, int]:
    """
    Norms of the values of each token as a flat array, and the elements from one KV head to the next; None if they are
    1, as nearly always where there is one for a tile, for the code that has none.
    """
    if value_norm is None or (value_norm.shape[-1] == 1 and bool((value_norm == 1).all())):
        return None, 0
    if value_norm.shape[-1] == 1:
        value_norm = value_norm.expand(-1, -1, -1, GROUP)
    flat, stride = _without_copy(value_norm)
    return flat.view(torch.uint16).numpy(), stride


def _flat(packed: Packed) -> tuple[tuple, tuple[int, int]]:
    """
    The memory of a layer's groups: words, scale and zero as flat arrays, and the elements from one KV head to the next
    in words and scales.
    """
    arrays: list[np.ndarray | None] = []
    strides = []
    for tensor in packed:
        if tensor is None:
            arrays.append(None)
            continue
        flat, stride = _without_copy(tensor)
        arrays.append((flat if flat.dtype == torch.int32 else flat.view(torch.int16)).numpy())
        strides.append(stride)
    return tuple(arrays), (strides[0], strides[1])


def _without_copy(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """
    `[B, Hkv, T, ...]` as a flat tensor, without copying what a store with spare room shows, and the elements from one
    KV head to the next.
    """
    if tensor.stride(0) != tensor.shape[1] * tensor.stride(1) or not tensor[0, 0].is_contiguous():
        tensor = tensor.contiguous()
    length = (tensor.shape[0] * tensor.shape[1] - 1) * tensor.stride(1) + tensor.shape[2:].numel()
    return tensor.as_strided((length,), (1,)), tensor.stride(1)


def _masks(packed: PackedKV, key_mask: torch.Tensor | None, sinks: int, recent: int, batch: int) -> tuple | None:
    """Masks `[B, n]` of the sinks, the slots and the recent tokens; None if nothing is hidden."""
    if key_mask is None and packed.alive is None:
        return None
    living = packed.num_slots if packed.alive is None else int(packed.alive.sum())
    if key_mask is None:
        key_mask = torch.ones(batch, sinks + living + recent, dtype=torch.bool, device="cpu")
    slots = key_mask[:, sinks : sinks + living]
    if packed.alive is not None:
        spread = slots.new_zeros(batch, packed.num_slots)
        spread[:, packed.alive] = slots
        slots = spread
    return tuple(mask.contiguous().numpy() for mask in (key_mask[:, :sinks], slots, key_mask[:, sinks + living :]))
