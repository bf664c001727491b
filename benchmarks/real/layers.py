"""S2O layer by layer, on the heads with which a model reads: density, error, missed mass by estimate and in truth."""

import torch
from tqdm import tqdm

from ..s2o.inputs import heads_by_layer
from ..s2o.operator import DEFAULT_TAU, dense, distance, sparse, truly_missed
from .reader import Reader


def measure_layers(reader: Reader, lengths: tuple[int, ...]) -> list[dict]:
    """One entry per length and layer with full attention, in float32, with S2O's defaults."""
    entries = []
    for seq_len in lengths:
        heads = heads_by_layer(reader, seq_len)
        for layer, each in tqdm(heads.items(), desc=f"layers at {seq_len}", unit="layer"):
            exact = each.to(torch.float32)
            out, shares = sparse(exact)
            found = {"tokens": seq_len, "layer": layer, "tau": DEFAULT_TAU, **shares}
            error = distance(out, dense(exact))
            entries.append(found | {"truly_missed": truly_missed(exact), "error": error["error"]})
    return entries
