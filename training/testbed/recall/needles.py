"""The recall task: `key value value` needles hidden in real text, questions at the end.

    <bos> import os @oslo#12#45 \\n import sys ... return None <ask>@oslo  ->  #12#45

Keys and values are drawn at random for every document, so nothing but the document can tell the answer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .text import ASK, KEYS, VALUES

NEEDLE = 3  # tokens: key, value, value
QUESTION = 4  # tokens: <ask>, key, value, value


@dataclass
class Needles:
    """A document with its needles.

    Attributes:
        document: token ids `[seq_len]`, `<bos>` first, int64.
        keys: token id of each needle's key `[n]`, in the order of the document; all different.
        answers: the two value tokens of each needle `[n, 2]`.
    """

    document: Tensor
    keys: Tensor
    answers: Tensor


def sample_document(
    tokenizer: PreTrainedTokenizerFast, text_ids: Tensor, seq_len: int, num_needles: int, generator: torch.Generator
) -> Needles:
    """Hide `num_needles` needles at random places of a random stretch of `text_ids` `[num_tokens]`.

    The document is exactly `seq_len` tokens long, `<bos>` and needles included.

    Raises:
        ValueError: the needles do not fit, there are more needles than keys, or the text is too short.
    """
    if not 0 < num_needles <= len(KEYS):
        raise ValueError(f"num_needles is {num_needles}; there are {len(KEYS)} keys: choose 1 to {len(KEYS)}")
    filler = seq_len - 1 - NEEDLE * num_needles
    if not 0 <= filler < len(text_ids):
        raise ValueError(
            f"seq_len {seq_len} with {num_needles} needles leaves {filler} text tokens; need 0 to {len(text_ids) - 1}"
        )
    keys = key_ids(tokenizer)[torch.randperm(len(KEYS), generator=generator)[:num_needles]]
    answers = value_ids(tokenizer)[torch.randint(len(VALUES), (num_needles, 2), generator=generator)]
    places = torch.randint(filler + 1, (num_needles,), generator=generator).sort().values
    text = random_stretch(text_ids, filler, generator)
    document, _ = interleave(text, list(torch.cat([keys[:, None], answers], dim=1)), places, tokenizer.bos_token_id)
    return Needles(document, keys, answers)


def question_ids(tokenizer: PreTrainedTokenizerFast, key: int | str) -> Tensor:
    """Token ids `[2]` that ask for `key` (its token, such as `"@oslo"`, or its id): append them to a document."""
    key_id = tokenizer.convert_tokens_to_ids(key) if isinstance(key, str) else int(key)
    if key_id not in key_ids(tokenizer):
        raise ValueError(f"{key!r} is not a key; keys are {KEYS[0]!r} to {KEYS[-1]!r}, see recall.text.KEYS")
    return torch.tensor([tokenizer.convert_tokens_to_ids(ASK), key_id])


def describe(tokenizer: PreTrainedTokenizerFast, needles: Needles) -> list[str]:
    """One readable line per needle, such as `@oslo -> #12 #45`."""
    return [
        f"{tokenizer.decode([int(key)])} -> {answer_text(tokenizer, answer)}"
        for key, answer in zip(needles.keys, needles.answers)
    ]


def answer_text(tokenizer: PreTrainedTokenizerFast, answer: Tensor) -> str:
    """Value tokens `[2]` as text: `#12 #45`."""
    return " ".join(tokenizer.convert_ids_to_tokens(answer.tolist()))


def key_ids(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Token ids of the 64 keys `[64]`."""
    return torch.tensor(tokenizer.convert_tokens_to_ids(list(KEYS)))


def value_ids(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Token ids of the 64 values `[64]`."""
    return torch.tensor(tokenizer.convert_tokens_to_ids(list(VALUES)))


def random_stretch(text_ids: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """`length` consecutive tokens of `text_ids` from a random start."""
    start = int(torch.randint(len(text_ids) - length + 1, (1,), generator=generator))
    return text_ids[start : start + length]


def interleave(text: Tensor, inserts: list[Tensor], places: Tensor, bos: int) -> tuple[Tensor, Tensor]:
    """Put `inserts[i]` before text token `places[i]` (ascending), `<bos>` in front of all.

    Returns the token ids `[1 + len(text) + inserted]` and the index at which each insert starts `[len(inserts)]`.
    """
    widths = torch.tensor([len(insert) for insert in inserts])
    starts = 1 + places + widths.cumsum(0) - widths
    ids = torch.full((1 + len(text) + int(widths.sum()),), -1)
    ids[0] = bos
    for start, insert in zip(starts.tolist(), inserts):
        ids[start : start + len(insert)] = insert
    ids[ids < 0] = text
    return ids, starts
