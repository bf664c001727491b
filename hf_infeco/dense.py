"""
Exact attention by torch: what runs where nothing is to be left out, and what sparse prefill is measured against.
"""

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

# Query rows per dense call where the mask has to be written out: it then grows with the keys, not with their square.
DENSE_ROWS = 512
# Channels in which a sink's logit travels: as many numbers of 8 bits or more as add up to a float32 exactly, and a
# multiple of 8, without which kernels for GPUs would not take the heads.
SINK_CHANNELS = 8


def dense_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, sinks: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Exact causal attention whose last query is the last key, never with a mask quadratic in the sequence. `sinks [H]`
    are a finite logit per query head that joins each row's softmax, with a value of zero.
    """
    q_len, kv_len = query.shape[2], key.shape[2]
    if q_len == 0:
        return query.new_zeros(*query.shape[:3], value.shape[3])
    if sinks is not None:
        return dense_attention(*_with_sink_key(query, key, value, sinks, scale), scale)[
            :, :, -q_len:, : value.shape[3]
        ]
    options = {"scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
    if q_len == 1:
        return F.scaled_dot_product_attention(query, key, value, **options)
    if q_len == kv_len and query.shape[3] == value.shape[3]:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, **options)
    # FlashAttention knows this bias as a flag; any other kernel gets it written out whole, so there we write slices.
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and query.shape[3] == value.shape[3]:
        bias = causal_lower_right(q_len, kv_len)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, **options)
    out = []
    for begin in range(0, q_len, DENSE_ROWS):
        rows = query[:, :, begin : begin + DENSE_ROWS]
        seen = kv_len - q_len + begin + rows.shape[2]  # keys up to the slice's last query
        mask = torch.ones(rows.shape[2], seen, dtype=torch.bool, device=query.device).tril(seen - rows.shape[2])
        out.append(
            F.scaled_dot_product_attention(rows, key[:, :, :seen], value[:, :, :seen], attn_mask=mask, **options)
        )
    return torch.cat(out, dim=2)


def masked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    mask: torch.Tensor,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Exact attention under `mask [B or 1, H or 1, q_len, kv_len]`, bool or added to the logits; `sinks` as above."""
    q_len, value_dim = query.shape[2], value.shape[3]
    if sinks is not None:
        query, key, value = _with_sink_key(query, key, value, sinks, scale)
        # Every query sees the sink, also the one that may have been put in front.
        mask = F.pad(mask, (1, 0, query.shape[2] - q_len, 0), value=mask.dtype == torch.bool)
    enable_gqa = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
    return out[:, :, -q_len:, :value_dim]


def capped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    softcap: float,
    mask: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Exact attention with logits softcap * tanh(logits / softcap), which none of torch's kernels knows; causal without a
    mask. Some rows at a time, so that the logits of a long prompt are never all there.
    """
    (batch, heads, q_len, _), (kv_heads, kv_len) = query.shape, key.shape[1:3]
    out = []
    for begin in range(0, q_len, DENSE_ROWS):
        rows = query[:, :, begin : begin + DENSE_ROWS].unflatten(1, (kv_heads, -1))  # [B, Hkv, r, rows, D]
        count = rows.shape[3]
        seen = kv_len - q_len + begin + count if mask is None else kv_len
        logits = (rows @ key[:, :, None, :seen].transpose(-1, -2)).float() * scale
        logits = (softcap * torch.tanh(logits / softcap)).flatten(1, 2)  # [B, H, rows, seen]
        if mask is None:
            visible = torch.ones(count, seen, dtype=torch.bool, device=query.device).tril(seen - count)
        else:
            visible = mask[:, :, begin : begin + DENSE_ROWS]
        # A finite number, since a query that is padding itself may see nothing at all.
        hidden = torch.finfo(logits.dtype).min
        logits = logits.masked_fill(~visible, hidden) if visible.dtype == torch.bool else logits + visible
        if sinks is not None:
            logits = torch.cat([logits, sinks.float()[None, :, None, None].expand(batch, heads, count, 1)], -1)
        weights = logits.softmax(-1)[..., :seen].to(value.dtype).unflatten(1, (kv_heads, -1))
        out.append((weights @ value[:, :, None, :seen]).flatten(1, 2))
    return torch.cat(out, dim=2)


def _with_sink_key(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Heads with one more key in front, whose logit is the sink: torch's kernels know no other way to add one."""
    rest = sinks.to(torch.promote_types(query.dtype, torch.float32)) / scale
    parts = []
    for _ in range(SINK_CHANNELS):  # what rounding leaves over goes into the next channel
        parts.append(rest.to(query.dtype))
        rest = rest - parts[-1]
    logits = torch.stack(parts, -1)[None, :, None].expand(*query.shape[:3], -1)
    # Square heads stay square, which has the faster kernels: a query of zeros goes with the key, and is cut off again.
    query = F.pad(torch.cat([query, logits], -1), (0, 0, int(query.shape[2] == key.shape[2]), 0))
    key = F.pad(key, (0, SINK_CHANNELS, 1, 0))
    key[:, :, 0, -SINK_CHANNELS:] = 1
    return query, key, F.pad(value, (0, max(0, key.shape[3] - value.shape[3]), 1, 0))
