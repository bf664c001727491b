"""A name for what an index lets through: equal for equal sets, however they came about."""

import hashlib

import numpy as np
import torch

from ..kernels.static.reference import Trie
from .items import ItemIds
from .merge import eligible_codes


def fingerprint(vocab_size: int, trie: Trie, item_ids: ItemIds | None, eligible: torch.Tensor | None) -> str:
    """16 hexadecimal digits that name the vocabulary, the eligible sequences and the ids of their items."""
    parts = list(eligible_codes(trie))
    if item_ids is not None:
        parts += item_ids.content(eligible)
    digest = hashlib.sha256(f"{vocab_size}".encode())
    for part in parts:
        digest.update(f" {part.dtype} {part.shape} ".encode())
        digest.update(np.ascontiguousarray(part).data.cast("B"))
    return digest.hexdigest()[:16]
