"""The S2O operator: checks its inputs, and runs."""

import torch

from ..prefill import causal_attention
from .config import S2OConfig
from .operation import SparsePrefill


def s2o_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    config: S2OConfig | None = None,
    *,
    scale: float | None = None,
    starts: list[int] | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Causal prefill attention by S2O (arXiv 2602.22575): visits, per query, only those keys that promise to matter.

    Args:
        q (`torch.Tensor` `[B, H, q_len, D]`): queries, the last `q_len` positions of the sequence; any floating dtype.
        k (`torch.Tensor` `[B, Hkv, kv_len, D]`): keys, not repeated for GQA; `H` is a multiple of `Hkv`.
        v (`torch.Tensor` `[B, Hkv, kv_len, Dv]`): values; `Dv` may differ from `D`.
        config (`S2OConfig`, *optional*): settings; the defaults when None. `tau=0` is exact.
        scale (`float`, *optional*): factor of the logits, `D**-0.5` when None.
        starts (`list[int]`, *optional*): left padding, the index of each batch row's first real key. Keys before it
            are never visited; the outputs of queries before it are zeros.
        sinks (`torch.Tensor` `[H]`, *optional*): learned attention sinks, a finite logit per query head that joins the
            softmax of each of its rows, with a value of zero; any floating dtype.

    Returns:
        `torch.Tensor` `[B, H, q_len, Dv]` in the dtype of `q`.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or a number is NaN. (Not looked for in a compiled
            graph, where a row that meets one becomes NaN, as it does in a patched model.)
    """
    config = S2OConfig.coerce(True if config is None else config)
    _check_inputs(q, k, v, starts)
    _check_sinks(q, sinks)
    if not torch.compiler.is_compiling():
        _check_numbers(q, k, v, starts)
    prefill = None if config is None else SparsePrefill(config)
    return causal_attention(q, k, v, prefill, scale=scale, starts=starts, sinks=sinks)[0]


def _check_numbers(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: list[int] | None) -> None:
    """Refuses NaN among what is attended; padded keys may hold anything."""
    for name, tensor in (("q", query), ("k", key), ("v", value)):
        if not tensor.is_floating_point() or not (bad := tensor.isnan().flatten(3).any(-1).any(1)).any():
            continue
        offset = key.shape[2] - tensor.shape[2]
        for row, position in bad.nonzero().tolist():
            if not starts or position + offset >= starts[row]:
                place = f"batch row {row} at position {position + offset}"
                raise ValueError(
                    f"{name} is NaN in {place}. Attention would spread it over all later rows: look for its source in "
                    "the layers before, often an overflow in float16."
                )


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


def _check_sinks(query: torch.Tensor, sinks: torch.Tensor | None) -> None:
    if sinks is None:
        return
    if sinks.shape != query.shape[1:2] or not sinks.is_floating_point() or sinks.device != query.device:
        raise ValueError(
            f"sinks are {sinks.dtype} {tuple(sinks.shape)} on {sinks.device}; each of {query.shape[1]} query heads "
            f"on {query.device} has one floating logit: pass [{query.shape[1]}] there."
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
