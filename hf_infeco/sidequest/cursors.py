"""`CursorMap`: the tokens of a conversation, and which of them are each cursor's."""

from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from .chat import ChatFormat
from .memory import Span
from .tools import Call, Message, ToolFormat


class CursorMap:
    """
    The tokens of an agent's conversation, and the span of each cursor in them.

    A cursor is a tool call with its result: from the `{"tool"` of the call to the end of the message that tells the
    result. Thoughts in front of a call, the prompt and the headers of turns belong to no cursor. A token that is part
    thought, part call counts as thought.

    Attributes:
        ids (`list[int]`): all tokens, by position.
        spans (`dict[int, tuple[int, int]]`): by cursor, its first token and the one behind its last.
        turns (`list[tuple[int, int]]`): of each assistant turn, its first token, behind the generation prompt, and the
            one behind its last.
        boundaries (`list[int]`): of each assistant turn, the position of its generation prompt: where a side thread
            is forked before that turn.
    """

    def __init__(self, chat: ChatFormat):
        self.chat = chat
        self.ids: list[int] = []
        self.spans: dict[int, Span] = {}
        self.turns: list[Span] = []
        self.boundaries: list[int] = []

    @classmethod
    def from_messages(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        messages: list[dict[str, Any]],
        schemas: list[dict] | None = None,
        tool_format: ToolFormat | None = None,
    ) -> Self:
        """
        Of a whole conversation, in the very tokens that a session gives its model: each piece is encoded alone.

        Args:
            messages (`list[dict]`): with "role" and "content"; a call's result is the message behind it, of any role.
            schemas (`list[dict]`, *optional*): of the tools, for a format that tells them.
            tool_format (`ToolFormat`, *optional*): how calls are written.
        """
        tool_format = tool_format or ToolFormat()
        cursors = cls(ChatFormat(tokenizer, tool_format))
        first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
        cursors.open(messages[:first], schemas or [])
        called: Call | None = None
        for message in messages[first:]:
            if message["role"] == "assistant":
                called = tool_format.parse_call(message["content"])
                cursors.begin_turn()
                cursors.say(cursors.chat.said(message["content"]))
                if called is None:
                    cursors.append(cursors.chat.end_of_turn)
            elif called is None:
                raise ValueError(
                    f"A message of role {message['role']!r} follows an assistant's text without a call: a "
                    "conversation ends with its first answer."
                )
            else:
                cursors.add_result(called, message)
        return cursors

    @property
    def next_cursor(self) -> int:
        return len(self.spans)

    def open(self, messages: list[dict[str, Any]], schemas: list[dict]) -> list[int]:
        return self.append(self.chat.opening(messages, schemas))

    def begin_turn(self) -> list[int]:
        """The generation prompt of a turn."""
        self.boundaries.append(len(self.ids))
        tokens = self.append(self.chat.generation_prompt)
        self.turns.append((len(self.ids), len(self.ids)))
        return tokens

    def say(self, tokens: list[int]) -> None:
        """More tokens of the current turn."""
        self.append(tokens)
        self.turns[-1] = self.turns[-1][0], len(self.ids)

    def add_result(self, call: Call, message: Message) -> list[int]:
        """The result of the current turn's call, which closes a cursor; returns its tokens."""
        cursor = self.next_cursor
        begin, end = self.turns[-1]
        while begin < end and len(self.chat.text(self.ids[self.turns[-1][0] : begin])) < call.begin:
            begin += 1
        tokens = self.append(self.chat.result(message))
        self.spans[cursor] = begin, len(self.ids)
        return tokens

    def append(self, tokens: list[int]) -> list[int]:
        self.ids += tokens
        return tokens
