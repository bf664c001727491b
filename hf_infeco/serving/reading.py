"""Answers as their model's template reads them. What it cannot read, such as a cut tool call, is content as it is."""

import copy
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.cli.serving.utils import response_events_to_chunks

UNREADABLE = (KeyError, RuntimeError, TypeError, ValueError)  # what transformers' parser raises for a model's mistakes


def forgiving(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A copy whose `parse_response` gives an answer that cannot be read as content, without special tokens."""
    made = copy.copy(tokenizer)

    def parse_response(response: list[int], *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            message = tokenizer.parse_response(response, *args, **kwargs)
            for call in message.get("tool_calls") or []:
                response_events_to_chunks([{"type": "region_close", "field": "tool_calls", "value": call}])
            return message
        except UNREADABLE:
            return {"content": tokenizer.decode(response, skip_special_tokens=True)}

    made.parse_response = parse_response
    return made


class ForgivingParser:
    """
    transformers' `ResponseParser` of a stream, which goes on after what cannot be read.

    Args:
        parser: made for the prompt.
        make: makes another one, for what comes after a piece that cannot be read.
    """

    def __init__(self, parser: Any, make: Callable[[], Any]):
        self._parser, self._make, self._unread = parser, make, ""
        self.initial_events: list[dict[str, Any]] = parser.initial_events

    def feed(self, text: str) -> list[dict[str, Any]]:
        return self._readable(lambda: self._parser.feed(text), text)

    def finalize(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        return {}, self._readable(lambda: self._parser.finalize()[1], "")

    def _readable(self, read: Callable[[], list[dict[str, Any]]], text: str) -> list[dict[str, Any]]:
        try:
            events = read()
            response_events_to_chunks(events)
        except UNREADABLE:
            self._parser, unread, self._unread = self._make(), self._unread + text, ""
            return [{"type": "region_chunk", "field": "content", "text": unread}]
        for event in events:
            if event["type"] != "region_chunk":
                self._unread = ""
            elif event.get("dirty"):  # handed on only when its region closes
                self._unread += event["text"]
        return events
