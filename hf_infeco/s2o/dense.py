"""Exact causal attention by torch's kernels: what S2O is below its crossover, and what it is measured against."""

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

# Query rows per dense call where the mask has to be written out: it then grows with the keys, not with their square.
DENSE_ROWS = 512


def dense_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Exact causal attention whose last query is the last key, never with a mask quadratic in the sequence."""
    q_len, kv_len = query.shape[2], key.shape[2]
    if q_len == 0:
        return query.new_zeros(*query.shape[:3], value.shape[3])
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
