"""Stop strings, which may lie across several pieces of a text."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any


def cut(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of the stop strings."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


class StoppingQueue(asyncio.Queue):
    """
    Pieces of a text on their way to a client, up to the first stop string; then None, and nothing more. What might be
    the beginning of one is held back until the next piece tells. An exception is the end too: `get` raises it.

    Args:
        stops (`Sequence[str]`): not empty ones.
        stop: called when one was found.
    """

    def __init__(self, stops: Sequence[str], stop: Callable[[], None]):
        super().__init__()
        self._stops, self._stop, self._held, self._is_over = stops, stop, "", False
        self._has_failed = False

    def put_nowait(self, item: Any) -> None:
        if self._is_over:
            return
        if type(item) is not str:  # the end, an exception, a tool call or a piece of reasoning
            self._pass_on(self._held)
            self._held = ""
            super().put_nowait(item)
            self._is_over = self._has_failed = isinstance(item, Exception)
            return
        text = self._held + item
        kept = cut(text, self._stops)
        if kept != text:
            self._is_over = True
            self._pass_on(kept)
            super().put_nowait(None)
            self._stop()
            return
        self._held = self._beginning_of_a_stop(text)
        self._pass_on(text[: len(text) - len(self._held)])

    def get_nowait(self) -> Any:
        if self._has_failed and self.qsize() == 1:
            raise asyncio.QueueEmpty  # whoever drains this queue would lose what was drained before
        return super().get_nowait()

    async def get(self) -> Any:
        try:
            return await super().get()
        except asyncio.QueueEmpty:
            raise super().get_nowait() from None

    def _pass_on(self, text: str) -> None:
        if text:
            super().put_nowait(text)

    def _beginning_of_a_stop(self, text: str) -> str:
        """The longest end of `text` with which a stop string begins."""
        longest = max(map(len, self._stops), default=1) - 1
        ends = (text[len(text) - size :] for size in range(min(longest, len(text)), 0, -1))
        return next((end for end in ends if any(stop.startswith(end) for stop in self._stops)), "")
