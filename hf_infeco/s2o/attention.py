"""The S2O operator: checks its inputs, takes left padding off, and runs sparse or dense, whichever is cheaper."""

import torch
import torch.nn.functional as F
from transformers.utils import logging

from ..dense import dense_attention
from ..kernels.s2o.reference import S2OStats, count_causal_pairs
from .config import S2OConfig
from .crossover import SHORTEST
from .operation import prefill

logger = logging.get_logger(__name__)

# On a GPU the products are those of its matrix units, and the tiles must fit into its registers.
GPU_DTYPES = (torch.bfloat16, torch.float16)
GPU_HEAD_DIM = 256


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
    return causal_attention(q, k, v, config, scale=scale, starts=starts, sinks=sinks)[0]


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    config: S2OConfig | None,
    *,
    scale: float | None = None,
    starts: list[int] | None = None,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, S2OStats]:
    """
    `s2o_attention` that also counts the pairs it visited, and trusts its inputs; here `config=None` means dense.

    Dense too, row by row: a sequence shorter than `config.crossover` keys, `config.tau == 0`, fewer queries than a
    segment, for which cutting the past costs as much as attending it, and any input that needs a gradient, which
    skipped keys would bias. Padded pairs are never counted.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    needs_gradient = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (query, key, value, sinks)
    )
    if needs_gradient:
        config = None
    if not starts or not any(starts):
        return _attend(query, key, value, sinks, config, scale)

    batch, q_len, kv_len = query.shape[0], query.shape[2], key.shape[2]
    pieces: list[torch.Tensor] = [query.new_empty(0)] * batch
    stats = S2OStats(0, 0)
    for start in sorted(set(starts)):
        members = [row for row, row_start in enumerate(starts) if row_start == start]
        padded = min(max(0, start - (kv_len - q_len)), q_len)  # queries that are padding themselves
        rows = torch.tensor(members, dtype=torch.int64, device=query.device)
        heads = query[rows, :, padded:], key[rows, :, start:], value[rows, :, start:]
        out, visited = _attend(*heads, sinks, config, scale)
        out = F.pad(out, (0, 0, padded, 0))
        stats = stats + visited
        for index, row in enumerate(members):
            pieces[row] = out[index]
    return torch.stack(pieces), stats


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    config: S2OConfig | None,
    scale: float,
) -> tuple[torch.Tensor, S2OStats]:
    """Attention of rows without padding. The numbers in the stats may be tensors on the device."""
    batch, heads, q_len, _ = query.shape
    kv_len = key.shape[2]
    pairs, rows = batch * heads * count_causal_pairs(q_len, kv_len), batch * heads * q_len
    if config is not None and (reason := _gpu_refusal(query, value)):
        logger.warning_once(f"S2O runs dense: {reason}.")
        config = None
    if config is None or config.tau == 0 or q_len < config.segment or kv_len < _surely_dense(config):
        return dense_attention(query, key, value, scale, sinks), S2OStats(pairs, pairs, 0.0, rows)
    with torch.no_grad():
        out, visited, missed = prefill(query, key, value, sinks, scale, config)
    return out, S2OStats(visited, pairs, missed, rows)


def _surely_dense(config: S2OConfig) -> int:
    """Sequences of fewer keys run dense, without asking what was measured."""
    return SHORTEST if isinstance(config.crossover, str) else config.crossover


def _gpu_refusal(query: torch.Tensor, value: torch.Tensor) -> str | None:
    """Why the kernel for GPUs cannot take these heads, as a sentence without its full stop; None if it can."""
    if not query.is_cuda:
        return None
    head_dim = max(query.shape[3], value.shape[3])
    if query.dtype not in GPU_DTYPES:
        return f"on a GPU it attends in float16 or bfloat16, and the model is in {query.dtype}"
    if head_dim > GPU_HEAD_DIM:
        return f"on a GPU it takes head_dim up to {GPU_HEAD_DIM}, and this is {head_dim}"
    return None


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
