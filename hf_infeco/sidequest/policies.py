"""What is dropped from an agent's context, and when: SideQuest and what it is compared with."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .command import RejectedCommand, parse_command

if TYPE_CHECKING:
    from .conversation import Conversation, Request, Strand


class Policy(ABC):
    """
    Decides at each turn boundary, when the prompt or a tool's result has just been read. Subclasses are dataclasses;
    every conversation has an instance of its own.

    Attributes:
        needs_own_cache (`bool`): whether it drops other tokens in each layer.
    """

    needs_own_cache = False

    def begin(self, conversation: "Conversation") -> None:  # noqa: B027
        """Before anything goes through the model. Most have nothing to prepare."""

    @abstractmethod
    def at_boundary(self, conversation: "Conversation") -> "Iterable[Request]":
        """Drops what it wants dropped. What it yields are tokens that the main thread has to wait for."""


@dataclass
class KeepAll(Policy):
    """Nothing is ever dropped."""

    def at_boundary(self, conversation: "Conversation") -> "Iterable[Request]":
        return ()


@dataclass
class OldestOutputs(Policy):
    """
    The oldest cursors go while the context is over a budget, as hosted agents clear old tool outputs.

    Args:
        budget (`int`): tokens that the context is brought down to, if cursors can do it.
        newest (`int`, defaults to 1): cursors that stay whatever their size.
    """

    budget: int
    newest: int = 1

    def at_boundary(self, conversation: "Conversation") -> "Iterable[Request]":
        excess, stale = conversation.main.resident - self.budget, []
        for cursor in conversation.open_cursors[: -self.newest or None]:
            if excess > 0:
                begin, end = conversation.cursors.spans[cursor]
                stale.append(cursor)
                excess -= end - begin
        conversation.delete(stale)
        return ()


@dataclass
class Labels(Policy):
    """
    What somebody who knows says is stale: the bound for SideQuest. Asked at the turns at which SideQuest forks, obeyed
    when it would be at the earliest: one turn later, or at once with `SideQuestConfig(synchronous=True)`.

    Args:
        expired (`Callable[[int], Iterable[int]]`): the cursors that no turn from this one on uses.
    """

    expired: Callable[[int], Iterable[int]]
    stale: list[int] = field(default_factory=list, init=False, repr=False)

    def at_boundary(self, conversation: "Conversation") -> "Iterable[Request]":
        self._obey(conversation)
        if conversation.is_side_due:
            self.stale = list(self.expired(conversation.turn))
            if conversation.config.synchronous:
                self._obey(conversation)
        return ()

    def _obey(self, conversation: "Conversation") -> None:
        conversation.delete([cursor for cursor in conversation.open_cursors if cursor in self.stale])
        self.stale = []


@dataclass
class SideQuest(Policy):
    """
    A side thread of the same model names the cursors to drop (SideQuest, arXiv 2602.22603): forked every
    `SideQuestConfig.interval` tool calls, obeyed at the next boundary after it is complete. Ids that the main thread
    has used since the fork are kept.
    """

    strand: "Strand | None" = field(default=None, init=False, repr=False)

    def at_boundary(self, conversation: "Conversation") -> "Iterator[Request]":
        self._obey(conversation)
        if self.strand is not None or not conversation.is_side_due:
            return
        self.strand = conversation.fork()
        if self.strand is not None and conversation.config.synchronous:
            yield from self.strand.steps
            self._obey(conversation)

    def _obey(self, conversation: "Conversation") -> None:
        if self.strand is None or not self.strand.is_done:
            return
        side, self.strand = self.strand, None
        text, has_ended = side.result
        try:
            if not has_ended:
                raise RejectedCommand(f"the side thread had not ended after {side.limit} tokens")
            ids = parse_command(text, side.open_cursors)
        except RejectedCommand as reason:
            conversation.reject(str(reason))
            return
        conversation.obey(ids, side.turn)
