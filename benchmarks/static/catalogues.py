"""Random catalogues, and rows of tokens on their way through them."""

import numpy as np
import torch

TOKENS, LENGTH = 2048, 8  # on each level, and of an item
WIDE_VOCABULARY = 151_936
BATCH, PROMPT = 2, 64  # prompts of that many tokens


def catalogue(items: int, first_token: int = 0, tokens: int = TOKENS) -> np.ndarray:
    """Random items `[items, LENGTH]`, of `tokens` tokens on each level from `first_token` on."""
    return np.random.default_rng(0).integers(first_token, first_token + tokens, (items, LENGTH), dtype=np.int32)


def row_sets(sequences: np.ndarray, beams: int, repeats: int) -> list[torch.Tensor]:
    """`repeats` times `[BATCH * beams, PROMPT + LENGTH]`: other items each time, which no CPU cache knows."""
    rows = BATCH * beams
    generator = np.random.default_rng(1)
    chosen = [sequences[generator.integers(0, len(sequences), rows)] for _ in range(repeats)]
    prompts = torch.ones(rows, PROMPT, dtype=torch.int64)
    return [torch.cat([prompts, torch.from_numpy(items).long()], 1) for items in chosen]
