"""Attention of several threads' tokens in one row, which their mask keeps apart."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .. import compat
from ..edits import Edits

PACKED_NAME = "infeco_packed"
KNOWN = {"dropout", "scaling", "is_causal", "position_ids", "sliding_window", "use_cache"}


def use_packed_attention(model: PreTrainedModel, edits: Edits) -> None:
    """Has a model that attends by "sdpa" do so without copies of keys and values, until `edits` are undone."""
    decoder = compat.decoder_of(model)
    if compat.attention_name(decoder) == "sdpa":
        AttentionInterface.register(PACKED_NAME, packed_attention)
        AttentionMaskInterface.register(PACKED_NAME, sdpa_mask)
        edits.set_attention(decoder, PACKED_NAME)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """
    That of transformers, which under a mask repeats keys and values for each query head. Here the queries of the heads
    that share a KV head are laid behind one another instead: `query [B, H, q_len, D]` becomes
    `[B, Hkv, groups * q_len, D]`. Returns `[B, q_len, H, Dv]`.
    """
    batch, heads, q_len, _ = query.shape
    groups = heads // key.shape[1]
    others = {name for name, value in kwargs.items() if name not in KNOWN and value is not None and value is not False}
    if attention_mask is None or groups == 1 or others or kwargs.get("dropout") or attention_mask.shape[1] != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    folded = query.reshape(batch, key.shape[1], groups * q_len, -1)
    mask = attention_mask.repeat(1, 1, groups, 1)
    out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, q_len, -1).transpose(1, 2).contiguous(), None


def as_mask(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """Which tokens (columns) each token (rows) sees, bool, as what is added to scores, `[1, 1, rows, columns]`."""
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
    return mask.masked_fill_(~sees, torch.finfo(dtype).min)[None, None]
