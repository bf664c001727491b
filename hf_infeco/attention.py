"""
The one attention function and the one mask function that hf_infeco registers with transformers, under the name
"infeco".

Prefill goes to what the layer's plan names, decoding to the cache if it can be attended as it is, everything else to
SDPA. What a layer may use was decided by `patch` and hangs on its attention module as a `LayerPlan`.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from . import compat
from .dense import capped_attention, masked_attention
from .edits import Edits
from .kv import DenseView, KVHandle, KVView, plain, view_behind
from .plan import PLAN_ATTRIBUTE, LayerPlan, plan_of
from .prefill import causal_attention

ATTENTION_NAME = "infeco"

# Above so many queries, dequantizing a layer once and running a dense kernel beats attending on packed groups.
MAX_PACKED_QUERIES = 32

# What a model may hand its attention by keyword. Anything else could change the maths in a way that we do not know.
IMPLEMENTED_ARGUMENTS = {"dropout", "scaling", "is_causal", "attention_mask", "s_aux", "softcap"}
if compat.SDPA_TAKES_POSITION_BIAS:
    IMPLEMENTED_ARGUMENTS.add("position_bias")
# These say again what the mask and the tensors say already, or are meant for other parts of the model.
NEUTRAL_ARGUMENTS = {
    "cache_position",
    "max_length_k",
    "max_length_q",
    "num_items_in_batch",
    "output_hidden_states",
    "output_router_logits",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "seq_idx",
    "sliding_window",
    "use_cache",
}
# What a user may ask for through a model. The model itself runs without.
FEATURES = {
    "cache": "a paged cache (continuous batching)",
    "cu_seq_lens_k": "packed sequences told by their lengths",
    "cu_seq_lens_q": "packed sequences told by their lengths",
    "output_attentions": "attention weights",
}


def register() -> None:
    """
    Makes "infeco" known to transformers. Attention and mask go together: without the mask function transformers would
    pass no mask at all, and padded batches would be silently wrong.
    """
    AttentionInterface.register(ATTENTION_NAME, infeco_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, infeco_mask)


def switch_attention(model: PreTrainedModel, edits: Edits) -> None:
    """Points the decoder's attention to ours and hangs an empty plan on each of its modules."""
    register()
    decoder = compat.decoder_of(model)
    edits.set_attribute(model, compat.CONTINUOUS_BATCHING, refuse_continuous_batching)
    edits.set_attention(decoder, ATTENTION_NAME)
    for module in compat.self_attention(decoder):
        edits.set_attribute(module, PLAN_ATTRIBUTE, LayerPlan())


def refuse_continuous_batching(*args: Any, **kwargs: Any) -> None:
    """
    Stands in for a patched model's entry to continuous batching, whose paged cache our attention does not read.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "This model is patched, and continuous batching (generate_batch) runs on a paged cache, which hf_infeco's "
        "attention does not read. Call hf_infeco.unpatch(model) first, or use generate()."
    )


def infeco_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    config: Any = None,
    **kwargs: Any,
) -> torch.Tensor | None:
    """
    The mask of one layer type, never quadratic where the pattern is plain causal.

    Returns:
        None for plain causal attention without padding, whose last query is the last key; the padding mask `[B,
        positions]` of bool, from the first token on, for causal attention with padding; SDPA's mask `[B, 1, q_length,
        kv_length]` for every other pattern.

    Raises:
        ValueError: for a cache that tokens were dropped from, where a padding mask has to be written into another.
    """
    # A window that the whole context fits into is plain causal too. Overlays, packed sequences, what a graph takes for
    # packed, and compiled steps with a static cache come with allow_is_causal_skip=False.
    within_window = local_size is not None and kv_length <= local_size
    is_causal = allow_is_causal_skip and (mask_function is causal_mask_function or within_window)
    # A static cache shows keys that are not written yet: causality is then not a matter of lengths alone.
    has_lengths = isinstance(q_offset, int) and isinstance(kv_offset, int)
    positions = kv_offset + kv_length
    padding = attention_mask
    if is_causal and has_lengths and q_offset + q_length == positions:
        # Like transformers, a mask that is too short hides the keys that it does not speak of.
        if padding is not None:
            padding = nn.functional.pad(padding[:, :positions], (0, max(0, positions - padding.shape[-1])))
        if padding is None or padding.all():
            return None
        if not compat.slices_masks(config):
            return padding
    # Without a window, keys begin late where `keep_tokens` dropped some, and the cache alone knows which.
    if has_lengths and kv_offset > 0 and local_size is None and padding is not None and not padding.all():
        raise ValueError(
            "Tokens were dropped from this cache, and the model asks for more than a causal mask, into which the "
            "attention_mask of a padded batch cannot be written any more. Run its rows one by one, without padding."
        )
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        # SDPA's None would mean "causal from the first key on", which is not what ours means: see the docstring.
        allow_is_causal_skip=False,
        config=config,
        **kwargs,
    )


def infeco_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    s_aux: torch.Tensor | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    Attention of a patched model, called by transformers' attention modules.

    Args:
        query (`torch.Tensor` `[B, H, q_len, D]`), key (`[B, Hkv, kv_len, D]`), value (`[B, Hkv, kv_len, Dv]`): key and
            value may be `KVHandle`s of a packed cache.
        attention_mask (`torch.Tensor`, *optional*): what `infeco_mask` returned, or a 4-D mask of the user's, which
            speaks of the keys that the cache shows.
        s_aux (`torch.Tensor` `[H]`, *optional*): learned attention sinks, logits that join each row's softmax.
        softcap (`float`, *optional*): logits become softcap * tanh(logits / softcap).

    Returns:
        The output `[B, q_len, H, Dv]`, and None in place of attention weights.

    Raises:
        ValueError: for an argument that changes the maths and is not implemented.
    """
    _refuse_unknown(module, kwargs)
    query, key, value = _to_one_dtype(query, key, value)
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    view = key.view_of if isinstance(key, KVHandle) else None
    padding = _padding(attention_mask, query, view)
    plan = plan_of(module)
    is_plain = is_causal and dropout == 0 and kwargs.get("position_bias") is None
    is_plain = is_plain and (attention_mask is None or padding is not None)

    # A module without a plan is none of ours: cross-attention, whose queries and keys are no one sequence.
    if plan and view is not None and not isinstance(view, DenseView) and query.shape[2] <= MAX_PACKED_QUERIES:
        if is_plain and view is view_behind(key, value):
            with torch.autocast(query.device.type, enabled=False):  # sums stay in float32
                out = view.attend(query, scale, padding, s_aux, softcap)
            if out is not None:
                plan.packed_calls += 1
                return out.transpose(1, 2).contiguous(), None
        plan.unpacked_calls += 1

    key, value = (plain(tensor).to(query.dtype) for tensor in (key, value))
    padding, attention_mask = _masks_of_keys(padding, attention_mask, key, view)
    if plan is not None and is_causal and query.shape[2] > 1:
        starts = left_padding(padding)
        if is_plain and softcap is None and (padding is None or starts is not None):
            # Training runs dense: skipped keys would bias gradients, and checkpointing must repeat the same forward.
            prefill = None if module.training else plan.prefill
            with torch.autocast(query.device.type, enabled=False):
                out, stats = causal_attention(query, key, value, prefill, scale=scale, starts=starts, sinks=s_aux)
            plan.stats = plan.stats + stats
            return out.transpose(1, 2).contiguous(), None
        plan.count_dense(query, key)
        if attention_mask is None and query.shape[2] < key.shape[2]:
            attention_mask = _full_mask(None, query.shape[2], key.shape[2], query.device)

    if padding is not None:
        attention_mask = _full_mask(padding, query.shape[2], key.shape[2], query.device)
    if s_aux is None and softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    if dropout or kwargs.get("position_bias") is not None:
        raise ValueError(
            f"{type(module).__name__} asks for dropout={dropout} or a position bias together with attention sinks or "
            "capped logits, which hf_infeco's attention does not implement. Call hf_infeco.unpatch(model)."
        )
    out = _masked(query, key, value, attention_mask, scale, s_aux, softcap, is_causal)
    return out.transpose(1, 2).contiguous(), None


def _refuse_unknown(module: nn.Module, kwargs: dict[str, Any]) -> None:
    for name in kwargs.keys() - IMPLEMENTED_ARGUMENTS - NEUTRAL_ARGUMENTS:
        if kwargs[name] is not None and kwargs[name] is not False:
            feature = FEATURES.get(name, "something that may change the result")
            raise ValueError(
                f"{type(module).__name__} asks for {feature} ({name}=...), which hf_infeco's attention does not "
                "implement. Call hf_infeco.unpatch(model). If you did not ask for it, please report the model: "
                "patch() should have left its attention alone."
            )


def _to_one_dtype(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Under autocast, projections and rotary embeddings disagree. SDPA casts, so we do; handles stay as they are."""
    device = tensors[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensors[0].dtype
    return [tensor if isinstance(tensor, KVHandle) else tensor.to(dtype) for tensor in tensors]


def _padding(attention_mask: torch.Tensor | None, query: torch.Tensor, view: KVView | None) -> torch.Tensor | None:
    """
    The mask as bool `[B, positions]` where it hides the same tokens from all queries that could see them, else None.
    """
    if attention_mask is None or attention_mask.ndim == 2:
        return attention_mask
    is_of_keys = view is not None and view.kept is not None  # and these are no positions any more
    one_query = query.shape[2] == 1 and attention_mask.shape[1:3] == (1, 1) and attention_mask.dtype == torch.bool
    return attention_mask[:, 0, 0].expand(query.shape[0], -1) if one_query and not is_of_keys else None


def _masks_of_keys(
    padding: torch.Tensor | None, attention_mask: torch.Tensor | None, key: torch.Tensor, view: KVView | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Padding `[B, positions]` and a 4-D mask as masks of the keys at hand, which also hide what rows do not hold."""
    if view is None:  # a window holds the last positions
        return (None if padding is None else padding[:, -key.shape[2] :]), attention_mask
    if padding is not None or attention_mask is None:
        padding = view.key_mask(padding)
        return padding, padding
    held = view.key_mask(None)
    if held is None:
        return None, attention_mask
    held = held[:, None, None]
    if attention_mask.dtype == torch.bool:
        return None, attention_mask & held
    return None, attention_mask.masked_fill(~held, torch.finfo(attention_mask.dtype).min)


def left_padding(padding: torch.Tensor | None) -> list[int] | None:
    """
    Index of each row's first token if `padding [B, kv_len]` hides a prefix of every row and nothing else; None if it
    hides anything else, or nothing.
    """
    if padding is None:
        return None
    starts = (~padding).sum(-1)
    positions = torch.arange(padding.shape[1], device=padding.device)
    is_prefix = torch.equal(padding, positions >= starts[:, None])
    return starts.tolist() if is_prefix else None


def _masked(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    sinks: torch.Tensor | None,
    softcap: float | None,
    is_causal: bool,
) -> torch.Tensor:
    """Attention with sinks or capped logits, which transformers' own function for torch's kernels does not know."""
    if softcap is not None and mask is None and is_causal:
        return capped_attention(query, key, value, scale, softcap, sinks=sinks)
    if mask is None:  # one query, or attention that is not causal
        mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    if softcap is not None:
        return capped_attention(query, key, value, scale, softcap, mask, sinks)
    return masked_attention(query, key, value, scale, mask, sinks)


def _full_mask(padding: torch.Tensor | None, q_len: int, kv_len: int, device: torch.device) -> torch.Tensor:
    """The mask `[B or 1, 1, q_len, kv_len]` of causal attention whose last query is the last key."""
    causal = torch.ones(q_len, kv_len, dtype=torch.bool, device=device).tril(kv_len - q_len)
    return causal[None, None] if padding is None else causal & padding[:, None, None, :]
