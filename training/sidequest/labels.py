"""Hindsight: when each cursor of a finished trace was used last."""

from typing import Any

from hf_infeco.sidequest import ToolFormat


def last_uses(messages: list[dict[str, Any]], tool_format: ToolFormat) -> list[int]:
    """
    For each cursor the turn that refers to it last: turn `t` is the assistant's message number `t`, which makes cursor
    `t` if it calls a tool. -1 where none does.
    """
    turns = [message["content"] for message in messages if message["role"] == "assistant"]
    calls = sum(tool_format.parse_call(text) is not None for text in turns)
    used = [-1] * calls
    for turn, text in enumerate(turns):
        for cursor in tool_format.references(text):
            if cursor < min(turn, calls):  # a number that is no cursor yet refers to nothing
                used[cursor] = turn
    return used


def expired(used: list[int], turn: int) -> list[int]:
    """The cursors that exist before turn `turn` and that neither it nor a later one refers to."""
    return [cursor for cursor, last in enumerate(used[:turn]) if last < turn]
