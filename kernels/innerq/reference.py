"""
InnerQ in readable torch: quantize along the dimension that a decode step sums over, and attend on the packed groups.

Source: InnerQ (arXiv 2602.23200). Keys: a group is `GROUP` consecutive channels of one token, because q.K^T sums over
channels. Values: a group is `GROUP` consecutive tokens of one channel, because p.V sums over tokens. Either way a
group costs one integer dot product and one multiplication by its scale.

In memory a group runs down, not along: its codes lie in a few words one below the other, and words of neighbouring
groups (tokens of a tile for keys, channels for values: the lanes) side by side. A fast path reads a row of lanes at
once, takes the same bits out of each, and needs no sum across lanes.

Shapes: B batch, H query heads, Hkv key-value heads, r = H / Hkv, N stored slots (tokens, a multiple of GROUP),
T = N / GROUP tiles, D key head dim, Dv value head dim, G = D / GROUP. Where GROUP does not divide a model's head dim,
D is the next multiple: `fill_groups` adds channels of zeros to keys before they are quantized, and queries lack them.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch

GROUP = 32  # numbers that share a scale; also the tokens that are packed at a time
SCALE_DTYPE = torch.float16
LARGEST = (
    2.0**15
)  # of a tile's values over their norm: their scales, and what a kernel makes of them, fit into float16
QUIETEST = 2.0**-100  # norm of a token whose values are zeros, which no division minds
KEY_REACH = {2: 0.8, 3: 0.9, 4: 1.0}  # by bits, see `quantize_keys`
VALUE_REACH = {2: 0.85, 3: 1.0, 4: 1.0}  # the same for values
CHUNK_TILES = 64  # tiles unpacked at a time, so that no step holds more than 2048 tokens in full precision


class Packed(NamedTuple):
    """
    Groups of `GROUP` numbers, packed; the groups of the last dimension are the lanes.

    Attributes:
        words (`torch.Tensor` of int32, `[..., bits, lanes]`): the codes of the groups, see `pack_codes`.
        scale (`torch.Tensor` of float16, `[..., lanes]`): step between two codes. A set sign bit marks an asymmetric
            group.
        zero (`torch.Tensor` of float16, `[..., lanes]`, *optional*): value of code 0 in asymmetric groups; hybrid
            mode only.
    """

    words: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None

    @property
    def bits(self) -> int:
        return self.words.shape[-2]


@dataclass(frozen=True)
class PackedKV:
    """
    The quantized tokens of one cache layer.

    Attributes:
        key (`Packed`): words `[B, Hkv, T, G, bits, 32 tokens]`, scale `[B, Hkv, T, G, 32]`; holds
            (k - key_mean) / key_norm, or `rotate` of that.
        value (`Packed`): words `[B, Hkv, T, bits, Dv]`, scale `[B, Hkv, T, Dv]`; holds v / value_norm.
        key_norm, key_mean (`torch.Tensor` of float32, `[B, Hkv, 1, D]`, *optional*): per-channel norm and mean of the
            keys.
        alive (`torch.Tensor` of bool, `[N]`, *optional*): slots that still hold a token; None means all of them.
        value_norm (`torch.Tensor` of bfloat16, `[B, Hkv, T, 32 or 1]`, *optional*): per-token norm of the values, or
            one for a tile, see `value_norms`; None means 1.
        is_rotated (`bool`): whether the keys are.
    """

    key: Packed
    value: Packed
    key_norm: torch.Tensor | None = None
    key_mean: torch.Tensor | None = None
    alive: torch.Tensor | None = None
    value_norm: torch.Tensor | None = None
    is_rotated: bool = False

    @property
    def num_slots(self) -> int:
        return self.key.words.shape[2] * GROUP


# ---------------------------------------------------------------- codes <-> words


def _planes(bits: int) -> list[tuple[int, int, int]]:
    """How `bits` are cut into planes of 2 and 1 bits: (first bit of the code, bits in the plane, first word)."""
    planes = [(2 * i, 2, 2 * i) for i in range(bits // 2)]
    return planes + [(bits - 1, 1, bits - 1)] if bits % 2 else planes


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """
    Packs `codes [..., lanes, 32]` (integers in `[0, 2**bits)`) into int32 words `[..., bits, lanes]`.

    A 3-bit code is split into a 2-bit plane (two words) and a 1-bit plane (one word): no code crosses a word, so that
    unpacking is a shift and a mask.
    """
    words = []
    for low, width, _ in _planes(bits):
        per_word = 32 // width
        plane = (codes.to(torch.int64) >> low) & (2**width - 1)
        plane = plane.unflatten(-1, (GROUP // per_word, per_word))  # [..., words of the plane, codes per word]
        words.append((plane << (width * torch.arange(per_word, device=codes.device))).sum(-1))
    # The 64-bit sum carries bit 31 as 2**31; narrowing keeps the low 32 bits.
    return torch.cat(words, -1).to(torch.int32).transpose(-1, -2).contiguous()


def unpack_codes(words: torch.Tensor) -> torch.Tensor:
    """Inverse of `pack_codes`: int32 words `[..., bits, lanes]` to uint8 codes `[..., lanes, 32]`."""
    words = words.transpose(-1, -2)
    codes = torch.zeros(*words.shape[:-1], GROUP, dtype=torch.uint8, device=words.device)
    for low, width, first in _planes(words.shape[-1]):
        per_word = 32 // width
        plane = words[..., first : first + GROUP // per_word, None]
        plane = (plane >> (width * torch.arange(per_word, device=words.device, dtype=torch.int32))) & (2**width - 1)
        codes |= (plane.flatten(-2) << low).to(torch.uint8)
    return codes


# ---------------------------------------------------------------- numbers <-> codes


def quantize_groups(groups: torch.Tensor, bits: int, hybrid: bool = False, reach: float = 1.0) -> Packed:
    """
    Quantizes `groups [..., lanes, 32]` (any float dtype) to `bits` per number.

    Symmetric: scale = `reach` * max|x| / L and code = round(x / scale + L), L = `code_of_zero(bits)`; numbers beyond
    `reach` * max|x| saturate. With `hybrid`, every group takes the asymmetric form (2**bits levels from min to max)
    where that has the smaller L1 error. At a reach of 1, groups of equal numbers, zeros included, come back as they
    went in, up to float16.
    """
    groups = groups.float()
    codes, scale = _symmetric(groups, bits, reach)
    if not hybrid:
        return Packed(pack_codes(codes, bits), scale, None)

    asym_codes, asym_scale, zero = _asymmetric(groups, bits)
    error = _fold_sum((groups - (codes - code_of_zero(bits)) * scale[..., None].float()).abs())
    asym_error = _fold_sum((groups - asym_codes * asym_scale[..., None].float() - zero[..., None].float()).abs())
    use_asym = asym_error < error
    codes = torch.where(use_asym[..., None], asym_codes, codes)
    # The mode travels in the sign bit: -0.0 is a valid asymmetric scale, and torch.signbit sees it.
    scale = torch.where(use_asym, -asym_scale, scale)
    return Packed(pack_codes(codes, bits), scale, torch.where(use_asym, zero, torch.zeros_like(zero)))


def code_of_zero(bits: int) -> float:
    """
    L, where zero lies among the codes of the symmetric form, and how many steps the largest number is away from it.

    From 3 bits on zero is a code, and the topmost code stays unused: {-3, ..., 3} steps. At 2 bits that would leave
    {-1, 0, 1}, whose squared error on normal numbers is twice that of the four levels {-1.5, -0.5, 0.5, 1.5}.
    """
    return 1.5 if bits == 2 else 2.0 ** (bits - 1) - 1


def _symmetric(groups: torch.Tensor, bits: int, reach: float) -> tuple[torch.Tensor, torch.Tensor]:
    middle = code_of_zero(bits)
    scale = _to_scale(groups.abs().amax(-1) * reach / middle)
    return _to_codes(groups, scale, middle, 2 * middle), scale


def _asymmetric(groups: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    steps = 2**bits - 1
    low, high = groups.aminmax(dim=-1)
    zero = low.clamp(*_float16_range()).to(SCALE_DTYPE)
    scale = _to_scale((high - zero.float()) / steps)
    return _to_codes(groups - zero[..., None].float(), scale, 0, steps), scale, zero


def _fold_sum(groups: torch.Tensor) -> torch.Tensor:
    """Sum over `[..., 32]` in one order everywhere: another order could choose another form for a near tie."""
    while (half := groups.shape[-1] // 2) > 0:
        groups = groups[..., :half] + groups[..., half:]
    return groups[..., 0]


def _to_scale(scale: torch.Tensor) -> torch.Tensor:
    return scale.clamp(0, _float16_range()[1]).to(SCALE_DTYPE)


def _float16_range() -> tuple[float, float]:
    limits = torch.finfo(SCALE_DTYPE)
    return limits.min, limits.max


def _to_codes(groups: torch.Tensor, scale: torch.Tensor, middle: float, highest: float) -> torch.Tensor:
    """round(groups / scale + middle); where the scale is 0 (a group of zeros, or of less than float16 can say), 0."""
    scale = scale[..., None].float()
    codes = (groups / scale.where(scale > 0, 1) + middle).round().clamp(0, highest)
    return torch.where(scale > 0, codes, 0)


def dequantize_groups(packed: Packed) -> torch.Tensor:
    """Inverse of `quantize_groups`, float32 `[..., lanes, 32]`."""
    codes, offset, scale = _decode(packed)
    return codes * scale[..., None] + offset[..., None]


def _decode(packed: Packed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every group as codes * scale + offset: float32 codes `[..., lanes, 32]`, offset and scale `[..., lanes]`."""
    scale = packed.scale.float().abs()
    offset = -code_of_zero(packed.bits) * scale
    if packed.zero is not None:
        offset = torch.where(packed.scale.signbit(), packed.zero.float(), offset)
    return unpack_codes(packed.words).float(), offset, scale


# ---------------------------------------------------------------- keys and values


def fill_groups(tensor: torch.Tensor) -> torch.Tensor:
    """Adds channels of zeros, up to whole groups; a tensor that has whole groups comes back as it is."""
    missing = -tensor.shape[-1] % GROUP
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor


def quantize_keys(
    key: torch.Tensor, bits: int, key_norm: torch.Tensor | None = None, key_mean: torch.Tensor | None = None
) -> Packed:
    """
    `normalize_keys` in groups of channels: `key [B, Hkv, N, D]`, N a multiple of `GROUP`, norm and mean `[B, Hkv, 1,
    D]`.

    The outermost code stands for `KEY_REACH` of a group's largest number, and what lies beyond saturates [ours]: at 2
    and 3 bits the smaller steps serve the others better than that costs the largest. At 4 bits they do not.
    """
    key = normalize_keys(key, key_norm, key_mean)
    tiles = key.unflatten(-1, (-1, GROUP)).unflatten(2, (-1, GROUP)).transpose(3, 4)  # [B, Hkv, T, G, token, channel]
    return quantize_groups(tiles, bits, reach=KEY_REACH[bits])


def normalize_keys(
    key: torch.Tensor, key_norm: torch.Tensor | None = None, key_mean: torch.Tensor | None = None
) -> torch.Tensor:
    """(key - key_mean) / key_norm in float32: `key [B, Hkv, N, D]`, norm and mean `[B, Hkv, 1, D]`."""
    key = key.float() if key_mean is None else key.float() - key_mean
    return key if key_norm is None else key / key_norm


def rotate(numbers: torch.Tensor) -> torch.Tensor:
    """
    `numbers [..., D]` times a fixed orthogonal matrix, and back again when applied twice: Hadamard's, of as many
    channels as the largest power of two that divides D [ours, after QuaRot, arXiv 2404.00456].

    q.k stays what it was where both are rotated, and a channel that is much larger than the others of its group, whose
    step they would all get, is spread over that many: 32 or more, since keys are filled to whole groups before.
    """
    width = numbers.shape[-1] & -numbers.shape[-1]
    matrix = _hadamard(width, numbers.device)
    return (numbers.float().unflatten(-1, (-1, width)) @ matrix).flatten(-2)


@lru_cache(maxsize=16)
def _hadamard(width: int, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # it is kept, and a later call may need a gradient
        matrix = torch.full((1, 1), width**-0.5, dtype=torch.float32, device=device)
        while len(matrix) < width:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def quantize_values(
    value: torch.Tensor, bits: int, hybrid: bool = False, value_norm: torch.Tensor | None = None
) -> Packed:
    """value / value_norm in groups of tokens: `value [B, Hkv, N, Dv]`, N a multiple of `GROUP`; see `value_norms`."""
    tiles = value.unflatten(2, (-1, GROUP))
    tiles = tiles if value_norm is None else tiles.float() / value_norm.float()[..., None]
    # [B, Hkv, T, Dv, 32]
    return quantize_groups(tiles.transpose(-1, -2), bits, hybrid, VALUE_REACH[bits])


def value_norms(value: torch.Tensor, by_token: bool = True) -> torch.Tensor:
    """
    What the values of each token are stored as multiples of: the root mean square of its channels in `value [B, Hkv,
    N, Dv]`, bfloat16 `[B, Hkv, T, 32]` [ours].

    Some tokens (spaces, articles) have values of a tenth of the usual size and get most of a head's attention. In a
    group they would carry the noise of the loud tokens' step. Over their norms all tokens of a group are alike, and
    the norm joins the token's weight in p.V. What rounding it to bfloat16 takes away is left in the codes.

    Without `by_token` one norm for a tile, `[B, Hkv, T, 1]`: the power of two that takes its values to `LARGEST` or
    less, 1 nearly always. bfloat16 and float32 hold numbers beyond float16's range, and some models' values are such.
    """
    tiles = value.unflatten(2, (-1, GROUP))
    largest = tiles.abs().amax(-1).float()  # [B, Hkv, T, 32]
    if not by_token:
        power = (largest.amax(-1, keepdim=True) / LARGEST).nan_to_num(1.0).clamp(min=1).log2().ceil()
        return power.exp2().bfloat16()
    dtype = torch.promote_types(value.dtype, torch.float32)
    size = torch.linalg.vector_norm(tiles, dim=-1, dtype=dtype) * value.shape[-1] ** -0.5
    # Squares overflow before numbers do; the largest of a token's numbers is about three times their norm.
    size = size.where(size.isfinite(), largest / 3).nan_to_num(1.0, posinf=1.0)
    return size.clamp(min=QUIETEST).bfloat16()


def channel_mean(key: torch.Tensor, is_real: torch.Tensor | None = None) -> torch.Tensor:
    """
    Mean of each key channel over `key [B, Hkv, N, D]`, or those tokens of it that `is_real [B, N]` tells from padding;
    float32 `[B, Hkv, 1, D]`.

    A channel that hardly leaves its mean would spend the codes of its whole group on that mean. Taken off the stored
    keys, it comes back as one number per query, q . mean, on all their logits.
    """
    if is_real is None:
        return key.float().mean(2, keepdim=True)
    is_real = is_real[:, None, :, None]
    return key.float().where(is_real, 0).sum(2, keepdim=True) / is_real.sum(2, keepdim=True).clamp(min=1)


def channel_norm(
    key: torch.Tensor, key_mean: torch.Tensor | None = None, is_real: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Norm of each key channel over `key [B, Hkv, N, D]`: n_c = sqrt(max over tokens of |k_c|), of k - `key_mean` where
    that is given, and of the real tokens as in `channel_mean`; float32 `[B, Hkv, 1, D]`.

    Storing k / n and asking with q * n evens out the channels that share a scale. The clamp keeps a channel that was
    silent so far from dividing by zero.
    """
    key = key.float() if key_mean is None else key.float() - key_mean
    if is_real is not None:
        key = key.where(is_real[:, None, :, None], 0)
    return key.abs().amax(2, keepdim=True).sqrt().clamp(min=1e-3)


def dequantize(packed: PackedKV) -> tuple[torch.Tensor, torch.Tensor]:
    """All living tokens in float32: key `[B, Hkv, tokens, D]`, value `[B, Hkv, tokens, Dv]`."""
    key = dequantize_groups(packed.key).transpose(3, 4).flatten(-2).flatten(2, 3)  # [B, Hkv, N, D]
    value = dequantize_groups(packed.value).transpose(-1, -2)  # [B, Hkv, T, 32, Dv]
    if packed.value_norm is not None:
        value = value * packed.value_norm[..., None]
    value = value.flatten(2, 3)  # [B, Hkv, N, Dv]
    key = restore_keys(key, packed)
    if packed.alive is not None:
        key, value = key[:, :, packed.alive], value[:, :, packed.alive]
    return key, value


def restore_keys(key: torch.Tensor, packed: PackedKV) -> torch.Tensor:
    """The keys that `packed` holds as `key [B, Hkv, N, D]`."""
    if packed.is_rotated:
        key = rotate(key)
    if packed.key_norm is not None:
        key = key * packed.key_norm
    return key if packed.key_mean is None else key + packed.key_mean


# ---------------------------------------------------------------- attention on the packed groups


class Partial(NamedTuple):
    """
    Attention over some of the keys, before normalization: max `m`, sum `l` `[B, Hkv, M, 1]`, `acc [B, Hkv, M, Dv]`.
    """

    m: torch.Tensor
    l: torch.Tensor
    acc: torch.Tensor


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
    """
    Attention of `query [B, H, q_len, D]` over exact and packed keys in one softmax.

    The keys' order is: the first exact piece (sinks), the packed tokens, the second exact piece (recent tokens, whose
    last `q_len` are the queries' own, hence causal among themselves).

    Args:
        packed (`PackedKV`): the quantized tokens.
        exact (`list` of two `(key [B, Hkv, n, D], value [B, Hkv, n, Dv])`): sinks and recent tokens, in full
        precision. scale (`float`): factor on q.k.
        key_mask (`torch.Tensor` of bool `[B, tokens]`, *optional*): False hides a key (padding).
        sinks (`torch.Tensor` `[H]`, *optional*): a learned logit per query head, which takes part in the softmax of
        each of its rows without a value. softcap (`float`, *optional*): c in logits of c * tanh(logit / c).

    Returns:
        `torch.Tensor`: `[B, H, q_len, Dv]` in the query's dtype. Rows that see no key at all are 0.
    """
    batch, heads, q_len, _ = query.shape
    kv_heads = packed.key.words.shape[1]
    rows = (query.float() * scale).reshape(batch, kv_heads, heads // kv_heads * q_len, -1)  # [B, Hkv, r * q_len, D]

    (sink_key, sink_value), (recent_key, recent_value) = exact
    num_sinks, num_recent = sink_key.shape[2], recent_key.shape[2]
    sink_mask = packed_mask = recent_mask = None
    if key_mask is not None:
        key_mask = key_mask[:, None, None, :]
        num_packed = key_mask.shape[-1] - num_sinks - num_recent
        sink_mask, packed_mask, recent_mask = key_mask.split([num_sinks, num_packed, num_recent], -1)
    if q_len > 1:
        causal = torch.ones(q_len, num_recent, dtype=torch.bool, device=query.device).tril(num_recent - q_len)
        causal = causal.repeat(heads // kv_heads, 1)  # rows are (query head of the group, position)
        recent_mask = causal if recent_mask is None else causal & recent_mask

    parts = [_attend_exact(rows, sink_key, sink_value, sink_mask, softcap)] if num_sinks else []
    parts += _attend_packed(rows, packed, _to_slots(packed, packed_mask), softcap)
    parts.append(_attend_exact(rows, recent_key, recent_value, recent_mask, softcap))
    if sinks is not None:
        m = sinks.float().view(1, kv_heads, -1, 1).expand(batch, -1, -1, q_len).reshape_as(parts[-1].m)
        parts.append(Partial(m, torch.ones_like(m), torch.zeros_like(parts[-1].acc)))
    total = _merge(parts)
    out = total.acc / total.l.where(total.l > 0, 1)
    return out.reshape(batch, heads, q_len, -1).to(query.dtype)


def _to_slots(packed: PackedKV, mask: torch.Tensor | None) -> torch.Tensor | None:
    """Spreads a mask over living tokens `[B, 1, 1, tokens]` to all slots `[B, 1, 1, N]`, dead ones False."""
    if packed.alive is None or mask is None:
        return mask if packed.alive is None else packed.alive[None, None, None, :]
    slots = mask.new_zeros(*mask.shape[:-1], packed.num_slots)
    slots[..., packed.alive] = mask
    return slots


def _attend_packed(
    rows: torch.Tensor, packed: PackedKV, mask: torch.Tensor | None, softcap: float | None
) -> list[Partial]:
    """`rows [B, Hkv, M, D]` against the packed tokens, `CHUNK_TILES` tiles at a time."""
    rows = fill_groups(rows)
    common = 0 if packed.key_mean is None else rows @ packed.key_mean.transpose(-1, -2)  # [B, Hkv, M, 1]
    rows = rows_for_codes(rows, packed).unflatten(-1, (-1, GROUP))  # [B, Hkv, M, G, 32]
    row_sums = rows.sum(-1)
    parts = []
    for tile in range(0, packed.num_slots // GROUP, CHUNK_TILES):
        tiles = slice(tile, tile + CHUNK_TILES)
        slots = slice(tile * GROUP, (tile + CHUNK_TILES) * GROUP)
        key, value = _slice(packed.key, tiles), _slice(packed.value, tiles)

        codes, offset, step = _decode(key)  # [B, Hkv, t, G, token, channel], [B, Hkv, t, G, token]
        dots = torch.einsum("bhmgc,bhtgnc->bhmtgn", rows, codes)
        scores = (dots * step[:, :, None]).sum(4) + torch.einsum("bhmg,bhtgn->bhmtn", row_sums, offset)
        scores = scores.flatten(-2) + common  # [B, Hkv, M, t * 32]
        m, l, weights = _softmax_parts(scores, None if mask is None else mask[..., slots], softcap)

        codes, offset, step = _decode(value)  # [B, Hkv, t, Dv, 32], [B, Hkv, t, Dv]
        weights = weights.unflatten(-1, (-1, GROUP))  # [B, Hkv, M, t, 32]
        if packed.value_norm is not None:
            weights = weights * packed.value_norm[:, :, None, tiles]
        sums = torch.einsum("bhmtc,bhtdc->bhmtd", weights, codes)
        acc = (sums * step[:, :, None]).sum(3) + torch.einsum("bhmt,bhtd->bhmd", weights.sum(-1), offset)
        parts.append(Partial(m, l, acc))
    return parts


def rows_for_codes(rows: torch.Tensor, packed: PackedKV) -> torch.Tensor:
    """What `rows [B, Hkv, M, D]` of queries ask stored keys with: q * n for k / n; float32 `[B, Hkv, M, G * 32]`."""
    rows = fill_groups(rows.float())
    rows = rows if packed.key_norm is None else rows * packed.key_norm
    return rotate(rows) if packed.is_rotated else rows


def _attend_exact(
    rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, softcap: float | None
) -> Partial:
    m, l, weights = _softmax_parts(rows @ key.float().transpose(-1, -2), mask, softcap)
    return Partial(m, l, weights @ value.float())


def _softmax_parts(
    scores: torch.Tensor, mask: torch.Tensor | None, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row maximum, sum and unnormalized weights of `scores [B, Hkv, M, n]`; rows with no key left have sum 0."""
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    m = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    weights = (scores - m).exp()
    return m, weights.sum(-1, keepdim=True), weights


def _merge(parts: list[Partial]) -> Partial:
    """Joins partial softmaxes over disjoint keys (log-sum-exp merge)."""
    m = torch.stack([part.m for part in parts]).amax(0)
    factors = [(part.m - m).exp() for part in parts]
    zero = torch.zeros_like(m)
    total = sum((part.l * factor for part, factor in zip(parts, factors, strict=True)), zero)
    acc = sum((part.acc * factor for part, factor in zip(parts, factors, strict=True)), zero)
    return Partial(m, total, acc)


def _slice(packed: Packed, where: slice) -> Packed:
    """Takes tiles out of axis 2."""
    zero = None if packed.zero is None else packed.zero[:, :, where]
    return Packed(packed.words[:, :, where], packed.scale[:, :, where], zero)
