"""Chats of a model whose answers have a template: what it says is never its client's mistake."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

pytest.importorskip("openai", reason="the extra [serve] is not installed")

from .canned import Canned, app_of, ask

CALL = '{"name":"look","arguments":{"at":1}}'
WORDS = ["<user>", "hello", "<call>", "</call>", CALL, '{"name":"lo', '{"colour":"red"}', "after"]
HELLO, OPEN, CLOSE, WHOLE, CUT, NAMELESS, AFTER = range(1, 8)
TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<user>",
    "fields": {
        "tool_calls": {
            "open": "<call>",
            "close": "</call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"content": "text"},
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    bare = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<user>"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=bare)
    made.chat_template = "{% for each in messages %}{{ each.content }} {% endfor %}<user>"
    made.response_template = TEMPLATE
    return made


def said(tokenizer, tokens: list[int], **fields) -> tuple[str, str, list[str]]:
    """Content, why it ended, and names of tools, of the answer of so many tokens."""
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": len(tokens), **fields}
    status, text = ask(app_of(Canned(tokens), tokenizer), "/v1/chat/completions", body)
    assert status == 200, text
    if not fields.get("stream"):
        (choice,) = json.loads(text)["choices"]
        calls = choice["message"].get("tool_calls") or []
        return choice["message"]["content"], choice["finish_reason"], [each["function"]["name"] for each in calls]
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    choices = [json.loads(line)["choices"][0] for line in lines]
    calls = [call for each in choices for call in each["delta"].get("tool_calls") or []]
    content = "".join(each["delta"].get("content") or "" for each in choices)
    return content, choices[-1]["finish_reason"], [each["function"]["name"] for each in calls]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_is_read(tokenizer, stream):
    content, reason, calls = said(tokenizer, [OPEN, WHOLE, CLOSE], stream=stream)
    assert (content.strip(), reason, calls) == ("", "tool_calls", ["look"])


@pytest.mark.parametrize("tokens", [[OPEN, CUT], [OPEN, CUT, CLOSE], [OPEN, NAMELESS, CLOSE]])
def test_an_answer_that_its_template_cannot_read_is_content_as_it_is(tokenizer, tokens):
    assert said(tokenizer, tokens) == (" ".join(WORDS[token] for token in tokens), "length", [])


@pytest.mark.parametrize("tokens", [[OPEN, CUT], [OPEN, CUT, CLOSE], [OPEN, NAMELESS, CLOSE]])
def test_streamed_what_cannot_be_read_is_content_and_the_stream_goes_on(tokenizer, tokens):
    content, reason, calls = said(tokenizer, [HELLO, *tokens, *([AFTER] if CLOSE in tokens else [])], stream=True)
    assert "hello" in content and WORDS[tokens[1]] in content and (reason, calls) == ("length", [])
    assert ("after" in content) == (CLOSE in tokens)
