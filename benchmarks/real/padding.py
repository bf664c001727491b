"""Left padding: how far the next tokens of padded rows are from those of the dense model."""

import torch

from hf_infeco import CACHE_NAME

from .reader import Reader
from .text import compare, means
from .ways import Way

PADS = (0, 32, 40)
READ, NEXT = 300, 12  # tokens of text in the cache, and scored behind it


@torch.no_grad()
def measure_padding(reader: Reader, ways: dict[str, Way], rows: int) -> list[dict]:
    """One entry per way and number of pads: KL divergence from the dense model on the same batch without padding."""
    texts = torch.stack(reader.windows(READ + NEXT, rows))
    dense = _next_logits(reader, Way(), texts, 0)
    entries = []
    for name, way in ways.items():
        for pads in PADS:
            sums = compare(_next_logits(reader, way, texts, pads), dense, texts[:, READ:].flatten())
            entries.append({"way": name, "pads": pads, "rows": rows, "kl": means(sums)["kl"]})
    return entries


def _next_logits(reader: Reader, way: Way, texts: torch.Tensor, pads: int) -> torch.Tensor:
    """Logits `[rows * NEXT, V]` of the last tokens of `texts`, the others read first behind `pads` of padding."""
    model, rows = reader.model, len(texts)
    padding = texts.new_zeros(rows, pads)  # whatever token it is, the mask hides it
    ids = torch.cat([padding, texts], 1)
    mask = torch.ones_like(ids)
    mask[:, :pads] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    end = pads + READ
    cache = way.empty(model.config)
    with way.at_work(model):
        model(ids[:, :end], attention_mask=mask[:, :end], position_ids=positions[:, :end], **{CACHE_NAME: cache})
        out = model(ids[:, end:], attention_mask=mask, position_ids=positions[:, end:], **{CACHE_NAME: cache})
    return out.logits.flatten(0, 1)
