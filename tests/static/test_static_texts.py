"""Texts come into an index as the tokens that a model writes behind its prompt."""

from pathlib import Path

import pandas as pd
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_infeco.static import StaticIndex

RECALL = Path(__file__).resolve().parents[2] / "examples" / "models" / "recall"
TITLES = ["New York", "New York City", "Yorkshire", "Old York", "the city of York", "Ännchen, 1984"]
PROMPTS = {True: "Where is it? Answer:", False: "Where is it?\n"}


def trained(kind: str) -> PreTrainedTokenizerFast:
    """Of the two kinds that there are: spaces belong to bytes, or are marked in front of words, the first included."""
    lines = [*TITLES, *PROMPTS.values(), *(f"{prompt} {title}" for prompt in PROMPTS.values() for title in TITLES)]
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        alphabet = []
    special = ["<unk>", "<eos>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(10 * lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


@pytest.mark.parametrize("kind", ["bytes", "words"])
@pytest.mark.parametrize("leading_space", [True, False])
def test_texts_are_what_stands_behind_a_prompt_and_end(kind, leading_space):
    tokenizer = trained(kind)
    index = StaticIndex.from_texts(TITLES, tokenizer, leading_space=leading_space)
    assert index.vocab_size == len(tokenizer)
    prompt = PROMPTS[leading_space]
    before = tokenizer(prompt)["input_ids"]
    for title in TITLES:
        whole = tokenizer(prompt + (" " if leading_space else "") + title)["input_ids"]
        assert whole[: len(before)] == before
        tokens = [*whole[len(before) :], tokenizer.eos_token_id]
        assert index.items(int(index.lookup([tokens])[0])) == [title]
        assert tokenizer.decode(tokens[:-1]).strip() == title


def test_a_text_that_begins_another_is_told_by_its_end():
    tokenizer = trained("bytes")
    index = StaticIndex.from_texts(["New York", "New York City"], tokenizer)
    tokens = tokenizer(" New York")["input_ids"]
    assert set(index.allowed_tokens(tokens)) == {tokenizer.eos_token_id, tokenizer(" City")["input_ids"][0]}


def test_the_bundled_tokenizer_has_no_end_token_and_is_given_one():
    tokenizer = AutoTokenizer.from_pretrained(RECALL)
    texts = ["the old house", "the old man", "a river"]
    with pytest.raises(ValueError, match="eos_token_id="):
        StaticIndex.from_texts(texts, tokenizer)
    index = StaticIndex.from_texts(texts, tokenizer, eos_token_id=0, vocab_size=2048)
    assert index.vocab_size == 2048
    for text in texts:
        rank = int(index.lookup([tokenizer(f" {text}")["input_ids"] + [0]])[0])
        assert index.items(rank) == [text]


def test_texts_may_be_a_column_with_ids_of_their_own_and_repeat():
    table = pd.DataFrame({"title": ["York", "York", "New York"], "id": [7, 8, 9]}, index=[2, 0, 1])
    index = StaticIndex.from_texts(table.title, trained("bytes"), item_ids=table.id)
    assert index.num_sequences == 2 and sorted(map(index.items, range(2))) == [[7, 8], [9]]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["York", ""], r"texts\[1\]='' holds no text"),
        ([None], r"texts\[0\]=None holds no text"),
        (["York", "東京"], r"texts\[1\]='東京' has no tokens of its own"),
    ],
)
def test_what_is_no_text_is_named(texts, message):
    with pytest.raises(ValueError, match=message):
        StaticIndex.from_texts(texts, trained("words"))
