"""S2O layer by layer, on the heads with which a model reads: density, error, missed mass by estimate and in truth."""

import torch
from tqdm import tqdm
from transformers import PreTrainedConfig

from ..s2o.inputs import Heads, capture
from ..s2o.operator import DEFAULT_TAU, dense, distance, sparse, truly_missed
from .reader import Reader


def measure_layers(reader: Reader, lengths: tuple[int, ...]) -> list[dict]:
    """One entry per length and layer with full attention, in float32, with S2O's defaults."""
    entries = []
    for seq_len in lengths:
        heads = full_attention_heads(reader, seq_len)
        for layer, each in tqdm(heads.items(), desc=f"layers at {seq_len}", unit="layer"):
            exact = each.to(torch.float32)
            out, shares = sparse(exact)
            found = {"tokens": seq_len, "layer": layer, "tau": DEFAULT_TAU, **shares}
            error = distance(out, dense(exact))
            entries.append(found | {"truly_missed": truly_missed(exact), "error": error["error"]})
    return entries


def full_attention_heads(reader: Reader, seq_len: int) -> dict[int, Heads]:
    """Heads by layer on one window of text, without layers that attend to a sliding window."""
    (ids,) = reader.windows(seq_len, 1)
    chosen = full_attention_layers(reader.model.config)
    return {layer: heads for layer, heads in capture(reader.model, ids[None]).items() if layer in chosen}


def full_attention_layers(config: PreTrainedConfig) -> set[int]:
    """Indices of the layers that attend to everything before."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return {layer for layer, kind in enumerate(kinds) if kind == "full_attention"}
