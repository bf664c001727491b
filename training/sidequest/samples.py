"""
Stages 2 and 3: the side threads of a trace, and what each should say.

At every `interval`-th turn, counted from a random one, a side thread is asked. Some of what it deletes is then closed,
one turn later as in a session, and the rest stays open: the model also sees traces in which something was missed.
"""

import json
import random
from dataclasses import asdict, dataclass
from typing import Any

from hf_infeco.sidequest import ToolFormat

from .labels import expired, last_uses

CLOSED = 0.7  # probability that a deleted cursor is closed


@dataclass(frozen=True)
class SideSample:
    """
    A side thread.

    Attributes:
        turn: it is forked before this turn of the assistant.
        open: cursors that it sees.
        stale: those of them that no turn from this one on refers to, which it should delete.
        target: what it should say.
    """

    turn: int
    open: list[int]
    stale: list[int]
    target: str


@dataclass(frozen=True)
class Trace:
    """
    A correct trace with its side threads.

    Attributes:
        messages: the whole conversation.
        closed: by cursor, the turn from which on it is hidden; -1 for never.
        samples: its side threads.
    """

    messages: list[dict[str, Any]]
    closed: list[int]
    samples: list[SideSample]

    def to_row(self) -> dict[str, Any]:
        """A row for `datasets`; `from_row` reads it."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Trace":
        return cls(row["messages"], row["closed"], [SideSample(**sample) for sample in row["samples"]])


def label(messages: list[dict[str, Any]], tool_format: ToolFormat, interval: int, draw: random.Random) -> Trace:
    """The side threads of a finished trace, with the template's reasons."""
    used = last_uses(messages, tool_format)
    closed, samples = [-1] * len(used), []
    first = draw.randint(1, interval)
    for turn in range(first, len(used) + 1, interval):
        seen = [cursor for cursor in range(turn) if not 0 <= closed[cursor] <= turn]
        gone = set(expired(used, turn))
        stale = [cursor for cursor in seen if cursor in gone]
        samples.append(SideSample(turn, seen, stale, command(seen, stale)))
        for cursor in stale:
            if draw.random() < CLOSED:
                closed[cursor] = turn + 1
    return Trace(messages, closed, samples)


def command(seen: list[int], stale: list[int], reason: str | None = None) -> str:
    """What a side thread should say: a reason, and the command behind it."""
    used = [cursor for cursor in seen if cursor not in stale]
    reason = reason or f"Open: {_listed(seen)}. In use: {_listed(used)}."
    return f"{reason}\n{json.dumps({'del_cursors': stale})}"


def _listed(cursors: list[int]) -> str:
    return ", ".join(map(str, cursors)) or "none"
