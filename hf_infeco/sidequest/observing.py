"""What a model's queries look at, for policies that ask: caught where attention is computed, layer by layer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel

from .. import compat
from ..attention import ATTENTION_NAME, infeco_attention, infeco_mask, switch_attention
from ..edits import Edits
from ..kv import plain

OBSERVED_NAME = "infeco_observed"
WATCH_ATTRIBUTE = "_infeco_watch"
CHUNK = 256  # queries whose scores are held at a time

Watch = Callable[[int, Tensor, Tensor, float], None]  # layer, query [H, q_len, D], key [H, kv_len, D], scale


def watch_attention(model: PreTrainedModel, watch: Watch, edits: Edits) -> None:
    """
    Has `watch` called with each layer's queries and keys, heads repeated, until `edits` are undone. Sliding windows
    are not watched: they forget by themselves, and nobody drops their tokens.
    """
    AttentionInterface.register(OBSERVED_NAME, observed_attention)
    AttentionMaskInterface.register(OBSERVED_NAME, infeco_mask)
    decoder = compat.decoder_of(model)
    if compat.attention_name(decoder) != ATTENTION_NAME:
        switch_attention(model, edits)
    edits.set_attention(decoder, OBSERVED_NAME)
    layers = DynamicCache(config=decoder.config).layers
    windows = {index for index, layer in enumerate(layers) if compat.is_window_layer(layer)}
    for module in compat.self_attention(decoder):
        if module.layer_idx not in windows:
            edits.set_attribute(module, WATCH_ATTRIBUTE, watch)


def observed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """`infeco_attention`, after whoever watches the module was told."""
    watch = vars(module).get(WATCH_ATTRIBUTE)
    if watch is not None:
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        keys = plain(key)[0]
        watch(module.layer_idx, query[0], keys.repeat_interleave(query.shape[1] // len(keys), 0), scale)
    return infeco_attention(module, query, key, value, attention_mask, **kwargs)


def attention_received(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """
    What each key gets of the attention of the newest tokens' queries, summed over these and averaged over heads:
    float32 `[kv_len]`.

    Args:
        query (`[H, q_len, D]`), key (`[H, kv_len, D]`): the last query is of the last key.
    """
    received = torch.zeros(key.shape[1], dtype=torch.float32, device=key.device)
    places = torch.arange(key.shape[1], device=key.device)
    own = places[key.shape[1] - query.shape[1] :]
    for begin in range(0, query.shape[1], CHUNK):
        scores = query[:, begin : begin + CHUNK] @ key.transpose(1, 2) * scale
        hidden = places > own[begin : begin + CHUNK, None]
        received += scores.masked_fill(hidden, -torch.inf).float().softmax(-1).mean(0).sum(0)
    return received
