"""Texts as the tokens that a model writes: with the space that stands before them, and the token that ends them."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from .sequences import as_array

CHUNK = 10_000
# What texts are tokenized behind, so that a tokenizer neither adds a space at the beginning nor joins the first word
# with it: a mark where a space follows, a line's end where none does.
BEHIND = {True: (":", ": "), False: ("\n", "\n")}


def tokenize(
    texts: Any, tokenizer: PreTrainedTokenizerBase, leading_space: bool, end_token: int
) -> tuple[list[str], list[list[int]]]:
    """
    The texts as a list, and the tokens of each with the end token.

    Raises:
        TypeError, ValueError: for what is no text, is empty, or has no tokens of its own; the message names the first.
    """
    listed = as_array(texts).tolist()
    for place, text in enumerate(listed):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"texts[{place}]={text!r} holds no text.")
    mark, context = BEHIND[leading_space]
    before = tokenizer(mark, add_special_tokens=False)["input_ids"]
    sequences = []
    for start in range(0, len(listed), CHUNK):
        chunk = listed[start : start + CHUNK]
        rows = tokenizer([context + text for text in chunk], add_special_tokens=False)["input_ids"]
        for place, row in enumerate(rows, start):
            tokens = row[len(before) :]
            if row[: len(before)] != before or not tokens or tokenizer.unk_token_id in tokens:
                raise ValueError(
                    f"texts[{place}]={listed[place]!r} has no tokens of its own behind {mark!r}: the tokenizer gives "
                    f"{tokenizer.convert_ids_to_tokens(row)}. Use StaticIndex.build with tokens that the model writes."
                )
            sequences.append([*tokens, end_token])
    return listed, sequences
