"""What a chat template writes around messages, as tokens; the text of a message never becomes a boundary."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from .tools import Call, Message, ToolFormat

SAID, TOLD = "Said7f3a", "Told7f3a"  # stand for an assistant's text and a tool's while the template is read


class ChatFormat:
    """
    The pieces that a conversation grows by, read off any chat template by rendering it with and without a message.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): with a chat template.
        tool_format (`ToolFormat`): how results are told.

    Raises:
        ValueError: for a tokenizer without a chat template, or with one whose messages cannot be told apart.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tool_format: ToolFormat):
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"{type(tokenizer).__name__} has no chat template: set tokenizer.chat_template to that of your model."
            )
        self.tokenizer, self.tool_format = tokenizer, tool_format
        self.turn = [{"role": "user", "content": "Go"}, {"role": "assistant", "content": SAID}]
        self.end_of_turn = self._encode(self._behind_said(self.turn))
        told = [*self.turn, {"role": "user", "content": TOLD}]
        self.generation_prompt = self._encode(
            _rest(self._render(told), self._render(told, add_generation_prompt=True))
        )

    def opening(self, messages: list[dict[str, Any]], schemas: list[dict]) -> list[int]:
        """Tokens of the messages in front of the first turn, without the generation prompt."""
        tools = {"tools": schemas} if self.tool_format.tells_schemas else {}
        return self._encode(self._render(messages, **tools))

    def said(self, text: str) -> list[int]:
        """Tokens of an assistant's text, as a model would write it."""
        return self._encode(text)

    def result(self, message: Message) -> list[int]:
        """
        Tokens behind an assistant's text, to the end of the message that tells a tool's result. Its content is text
        throughout: names of special tokens in it are spelt out, and end no message.
        """
        if isinstance(message, dict):
            before, _, after = self._behind_said([*self.turn, {**message, "content": TOLD}]).partition(TOLD)
            whole = self._behind_said([*self.turn, message])
            if not (after and whole.startswith(before) and whole.endswith(after)):
                raise ValueError(
                    "This chat template does not show a tool's result as it is: subclass ToolFormat, and let "
                    "render_result return another message, or the texts themselves."
                )
            content = whole[len(before) : len(whole) - len(after)]
        else:
            before, content, after = message
        return [*self._encode(before), *self._encode(content, is_content=True), *self._encode(after)]

    def trigger(self, text: str) -> list[int]:
        """Tokens of a user's message behind a tool's result, and of the generation prompt."""
        message = self.tool_format.render_result(Call(0), 0, TOLD)
        told = (
            self.turn + [message] if isinstance(message, dict) else [self.turn[0], {**self.turn[1], "content": TOLD}]
        )
        closing = self._render(told).partition(TOLD)[2]
        asked = [*told, {"role": "user", "content": text}]
        return self._encode(_rest(closing, self._render(asked, add_generation_prompt=True).partition(TOLD)[2]))

    def text(self, tokens: list[int]) -> str:
        """Of tokens that a model wrote. Special ones are shown: formats of calls are made of them."""
        return str(self.tokenizer.decode(tokens))

    def _behind_said(self, messages: list[dict[str, Any]]) -> str:
        """What the template writes behind the assistant's text. It comes before any tool's, which may repeat it."""
        return self._render(messages).partition(SAID)[2]

    def _render(self, messages: list[dict[str, Any]], **settings: Any) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **settings))

    def _encode(self, text: str, is_content: bool = False) -> list[int]:
        """Content is text throughout: the name of a special token in it is spelt out."""
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=is_content)["input_ids"]
        return list(ids)


def _rest(front: str, whole: str) -> str:
    if not whole.startswith(front):
        raise ValueError(
            "This chat template changes earlier messages when one is added, so its messages cannot be told apart: "
            "set tokenizer.chat_template to one that only appends."
        )
    return whole[len(front) :]
