"""What a session did and what it cost."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """
    Something that happened at a turn.

    Attributes:
        kind (`str`): "turn", "fork", "command", "rejected", "evicted" or "answer".
        turn (`int`): tool calls made so far.
        text (`str`): what a thread wrote; for "rejected", why.
        cursors (`tuple[int, ...]`): those open ("fork", "turn"), to be deleted ("command") or dropped ("evicted").
        result (`str`): of the tool, for "turn".
        tokens (`int`), nbytes (`int`): freed, for "evicted".
    """

    kind: str
    turn: int
    text: str = ""
    cursors: tuple[int, ...] = ()
    result: str = ""
    tokens: int = 0
    nbytes: int = 0


@dataclass
class Record:
    """
    Counters of one conversation.

    Attributes:
        turns (`int`): tool calls.
        peak_tokens (`int`): most tokens that the main thread ever saw at once.
        main_forwards (`int`): forwards with tokens of the main thread.
        kv_reads (`int`): tokens that it saw, summed over these forwards.
        side_kv_reads (`int`): the same of side threads; in shared forwards their own tokens alone, since the rest is
            read once for both.
        peak_nbytes (`int`): most bytes of all caches, those of other conversations in the same batch included.
        main_tokens (`int`), side_tokens (`int`): written by the threads.
        deleted (`list[tuple[int, int]]`): turn and cursor of each deletion.
        rejected (`list[str]`): why commands were not obeyed.
        spared (`list[int]`): cursors that a command named and the main thread had used since the fork.
        side_texts (`list[str]`): what side threads wrote.
        tool_errors (`int`): calls that gave no result.
        events (`list[Event]`): all of it, in order.
    """

    turns: int = 0
    peak_tokens: int = 0
    main_forwards: int = 0
    kv_reads: int = 0
    side_kv_reads: int = 0
    peak_nbytes: int = 0
    main_tokens: int = 0
    side_tokens: int = 0
    deleted: list[tuple[int, int]] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    spared: list[int] = field(default_factory=list)
    side_texts: list[str] = field(default_factory=list)
    tool_errors: int = 0
    events: list[Event] = field(default_factory=list)

    @property
    def mean_tokens(self) -> float:
        """Tokens that the main thread saw, on average over its forwards."""
        return self.kv_reads / max(1, self.main_forwards)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the events."""
        values = {name: value for name, value in asdict(self).items() if name != "events"}
        return {**values, "mean_tokens": self.mean_tokens}
