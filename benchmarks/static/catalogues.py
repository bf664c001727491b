"""Random catalogues, and rows of tokens on their way through them."""

import numpy as np
import torch

TOKENS, LENGTH = 2048, 8  # on each level, and of an item
WIDE_VOCABULARY = 151_936
BATCH, PROMPT = 2, 64  # prompts of that many tokens


def catalogue(items: int, first_token: int = 0, tokens: int = TOKENS) -> np.ndarray:
    """Random items `[items, LENGTH]`, of `tokens` tokens on each level from `first_token` on."""
    return np.random.default_rng(0).integers(first_token, first_token + tokens, (items, LENGTH), dtype=np.int32)


def zipf_catalogue(items: int) -> np.ndarray:
    """Items `[items, LENGTH]` of which most have few tokens: the r-th token of a level is drawn as often as 1 / r."""
    share = 1 / np.arange(1, TOKENS + 1)
    return np.random.default_rng(0).choice(TOKENS, (items, LENGTH), p=share / share.sum()).astype(np.int32)


def titles(count: int) -> list[str]:
    """Distinct titles of two to six words out of 2,000, of which the r-th occurs as often as 1 / r."""
    generator = np.random.default_rng(0)
    syllables = [
        first + vowel for first in "bcdfghklmnprstvw" for vowel in ("a", "e", "i", "o", "u", "an", "er", "on")
    ]
    words = ["".join(generator.choice(syllables, size)) for size in generator.integers(1, 4, 2000)]
    share = 1 / np.arange(1, len(words) + 1)
    found: dict[str, None] = {}
    while len(found) < count:
        chosen = generator.choice(words, int(generator.integers(2, 7)), p=share / share.sum())
        found[" ".join(chosen)] = None
    return list(found)


def row_sets(sequences: np.ndarray, beams: int, repeats: int) -> list[torch.Tensor]:
    """`repeats` times `[BATCH * beams, PROMPT + length]`: other items each time, which no CPU cache knows."""
    rows = BATCH * beams
    generator = np.random.default_rng(1)
    chosen = [sequences[generator.integers(0, len(sequences), rows)] for _ in range(repeats)]
    prompts = torch.ones(rows, PROMPT, dtype=torch.int64)
    return [torch.cat([prompts, torch.from_numpy(items).long()], 1) for items in chosen]
