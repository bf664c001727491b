"""Causal attention of a prompt: left padding taken off, and what is left attended dense or by a method's kernel."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .dense import dense_attention
from .kernels.pairs import PairStats

# prefill(query, key, value, scale, sinks) of rows without padding: the output, and what was attended.
Prefill = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, float, torch.Tensor | None], tuple[torch.Tensor, PairStats]
]


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefill: Prefill | None = None,
    *,
    scale: float | None = None,
    starts: list[int] | None = None,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, PairStats]:
    """
    Attention `[B, H, q_len, Dv]` of `query [B, H, q_len, D]`, the last positions of `key [B, Hkv, kv_len, D]` and
    `value [B, Hkv, kv_len, Dv]`, and how many pairs of them were attended.

    Args:
        prefill (`Prefill`, *optional*): what attends; `dense` when None, and where anything needs a gradient, which
            skipped keys would bias.
        scale (`float`, *optional*): factor of the logits, `D**-0.5` when None.
        starts (`list[int]`, *optional*): left padding, the index of each batch row's first real key. The outputs of
            queries before it are zeros, and their pairs are not counted.
        sinks (`torch.Tensor` `[H]`, *optional*): learned attention sinks.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    inputs = (query, key, value, sinks)
    needs_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    attend = dense if prefill is None or needs_gradient else prefill
    if not starts or not any(starts):
        return attend(query, key, value, scale, sinks)

    batch, q_len, kv_len = query.shape[0], query.shape[2], key.shape[2]
    pieces: list[torch.Tensor] = [query.new_empty(0)] * batch
    stats = PairStats(0, 0)
    for start in sorted(set(starts)):
        members = [row for row, row_start in enumerate(starts) if row_start == start]
        padded = min(max(0, start - (kv_len - q_len)), q_len)  # queries that are padding themselves
        rows = torch.tensor(members, dtype=torch.int64, device=query.device)
        out, visited = attend(query[rows, :, padded:], key[rows, :, start:], value[rows, :, start:], scale, sinks)
        out = F.pad(out, (0, 0, padded, 0))
        stats = stats + visited
        for index, row in enumerate(members):
            pieces[row] = out[index]
    return torch.stack(pieces), stats


def dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, sinks: torch.Tensor | None
) -> tuple[torch.Tensor, PairStats]:
    """A `Prefill` that leaves nothing out."""
    return dense_attention(query, key, value, scale, sinks), PairStats.dense(query, key)
