"""The S2O operator: checks its inputs, takes left padding off, and runs sparse or dense, whichever is cheaper."""

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from ..kernels.s2o.reference import S2OStats, count_causal_pairs, s2o_prefill
from .config import S2OConfig

# Query rows per dense call where the mask has to be written out: it then grows with the keys, not with their square.
DENSE_ROWS = 512


def s2o_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    config: S2OConfig | None = None,
    *,
    scale: float | None = None,
    starts: list[int] | None = None,
) -> torch.Tensor:
    """
    Causal prefill attention by S2O (arXiv 2602.22575): visits, per query, only as much of the past as still adds mass.

    Args:
        q (`torch.Tensor` `[B, H, q_len, D]`): queries, the last `q_len` positions of the sequence; any floating dtype.
        k (`torch.Tensor` `[B, Hkv, kv_len, D]`): keys, not repeated for GQA; `H` is a multiple of `Hkv`.
        v (`torch.Tensor` `[B, Hkv, kv_len, Dv]`): values; `Dv` may differ from `D`.
        config (`S2OConfig`, *optional*): settings; the defaults when None. `tau=0` is exact.
        scale (`float`, *optional*): factor of the logits, `D**-0.5` when None.
        starts (`list[int]`, *optional*): left padding, the index of each batch row's first real key. Keys before it
            are never visited; the outputs of queries before it are zeros.

    Returns:
        `torch.Tensor` `[B, H, q_len, Dv]` in the dtype of `q`. Inputs are not scanned for NaN: a row that meets one
        becomes NaN.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together.
    """
    config = S2OConfig.coerce(True if config is None else config)
    return causal_attention(q, k, v, config, scale=scale, starts=starts)[0]


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    config: S2OConfig | None,
    *,
    scale: float | None = None,
    starts: list[int] | None = None,
) -> tuple[torch.Tensor, S2OStats]:
    """
    `s2o_attention` that also counts the pairs it visited; here `config=None` means dense.

    Dense too, row by row: a sequence shorter than `config.crossover` keys, `config.tau == 0`, fewer queries than a
    granule, and any input that needs a gradient, which skipped keys would bias. Padded pairs are never counted.
    """
    _check_inputs(query, key, value, starts)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    if needs_gradient:
        config = None
    if not starts or not any(starts):
        return _attend(query, key, value, config, scale)

    batch, q_len, kv_len = query.shape[0], query.shape[2], key.shape[2]
    pieces: list[torch.Tensor] = [query.new_empty(0)] * batch
    stats = S2OStats(0, 0)
    for start in sorted(set(starts)):
        members = [row for row, row_start in enumerate(starts) if row_start == start]
        padded = min(max(0, start - (kv_len - q_len)), q_len)  # queries that are padding themselves
        rows = torch.tensor(members, device=query.device)
        out, visited = _attend(query[rows, :, padded:], key[rows, :, start:], value[rows, :, start:], config, scale)
        out = F.pad(out, (0, 0, padded, 0))
        stats = stats + visited
        for index, row in enumerate(members):
            pieces[row] = out[index]
    return torch.stack(pieces), stats


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, config: S2OConfig | None, scale: float
) -> tuple[torch.Tensor, S2OStats]:
    """Attention of rows without padding."""
    batch, heads, q_len, _ = query.shape
    kv_len = key.shape[2]
    if config is None or config.tau == 0 or kv_len < config.crossover or q_len < config.granule:
        pairs = batch * heads * count_causal_pairs(q_len, kv_len)
        return _dense(query, key, value, scale), S2OStats(pairs, pairs)
    return s2o_prefill(
        query,
        key,
        value,
        scale=scale,
        tau=config.tau,
        segment=config.segment,
        granule=config.granule,
        chunk=config.chunk,
        patience=config.patience,
        sink=config.sink,
        local=config.local,
    )


def _dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
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


def _check_inputs(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: list[int] | None) -> None:
    """Refuses what would fail deep inside, or worse, broadcast; the values themselves are not read."""
    named = {"query": query, "key": key, "value": value}
    for name, tensor in named.items():
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, {tensor.ndim} dimensions; attention needs 4: "
                "[batch, heads, length, head_dim]. Add the missing ones with unsqueeze or view."
            )
        if not tensor.is_floating_point():
            raise ValueError(
                f"{name} is {tensor.dtype}; attention needs a floating dtype. Convert it, say with .float()."
            )
    if len({x.dtype for x in named.values()}) > 1 or len({x.device for x in named.values()}) > 1:
        found = ", ".join(f"{name} {tensor.dtype} on {tensor.device}" for name, tensor in named.items())
        raise ValueError(
            f"query, key and value must share one dtype and device, but are {found}. Convert with .to(...)."
        )
    _check_shapes(query, key, value)
    batch, kv_len = key.shape[0], key.shape[2]
    if starts is not None and (len(starts) != batch or not all(0 <= start <= kv_len for start in starts)):
        raise ValueError(
            f"starts={starts} must hold one key index from 0 to kv_len={kv_len} for each of the {batch} batch rows; "
            "pass None without left padding."
        )


def _check_shapes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if query.shape[0] != key.shape[0] or key.shape[:3] != value.shape[:3]:
        raise ValueError(f"Batch, KV heads and kv_len must agree, but got {shapes}. Expand or slice the odd one out.")
    if query.shape[3] != key.shape[3]:
        raise ValueError(
            f"head_dim is {query.shape[3]} in query and {key.shape[3]} in key; they must be equal ({shapes})."
        )
    if key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ValueError(
            f"{query.shape[1]} query heads cannot share {key.shape[1]} KV heads: the first must be a multiple of the "
            "second. Under tensor parallelism, choose a degree that divides the KV heads."
        )
    if query.shape[2] > key.shape[2]:
        raise ValueError(
            f"q_len={query.shape[2]} is above kv_len={key.shape[2]}; queries are the last positions of the keys, so "
            "it may be at most that. Append the new keys before attending."
        )
