"""A conversation whose course is foreseen: a few forwards tell whether the model would write it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache

from ..compat import CACHE_NAME
from .adapters import Tokens
from .conversation import Conversation
from .cursors import CursorMap
from .packed_attention import as_mask
from .record import Event
from .session import SideQuestResult, SideQuestSession, drive, result_of
from .threads import Feed, PackedThreads

CHUNK = 256  # tokens of a forward; in a longer one more of them attend, under the mask, to what is behind them

Says = Callable[[int, Sequence[int]], str]  # of the turn before which a side thread is forked, and the cursors it sees


def replay(
    session: SideQuestSession, messages: list[dict[str, Any]], solution: list[dict[str, Any]], says: Says
) -> SideQuestResult | None:
    """
    What `session.run(messages)` returns if all goes as foreseen, found much sooner than token by token: greedy
    decoding writes a text exactly if each of its tokens is the most likely one behind those before it. The tools are
    called as the solution calls them, before the model is asked: they must be without effects, as reading is.

    Args:
        session (`SideQuestSession`): of the conversation.
        messages (`list[dict]`): up to the user's question.
        solution (`list[dict]`): the messages foreseen behind them, to the final answer.
        says (`Callable[[int, Sequence[int]], str]`): what a side thread should write, by the turn before which it is
            forked and the cursors that it sees.

    Returns:
        the result, whose `peak_nbytes` is not measured; None where the model or a tool would say anything else, and
        for a session whose threads cannot be packed into one row, or whose tokens are not the most likely ones.
    """
    if session.waits or session.config.temperature > 0 or session.logits_processor:
        return None
    main = CursorMap.from_messages(
        session.tokenizer, messages + solution, session.toolbox.schemas, session.tool_format
    )
    threads = ForeseenThreads(session, main, says)
    try:
        conversation = Conversation(session, threads, messages, on_event=threads.hear)
        drive(threads, [conversation])
        foreseen = conversation.failure is None and all(
            logits.argmax(-1).tolist() == wanted for wanted, logits in threads.computed()
        )
    except OtherCourse:
        foreseen = False
    finally:
        threads.finish()
    return result_of(conversation) if foreseen else None


class OtherCourse(Exception):
    """The conversation does not go as it was foreseen."""


@dataclass(frozen=True)
class Step:
    """
    What would go through the model at a time.

    Attributes:
        sees: bool `[tokens, slots]`.
        wanted: by index of a token, the one that should be written behind it.
    """

    tokens: list[int]
    positions: list[int]
    sees: Tensor
    adapters: list[Tokens]
    wanted: dict[int, int]


class ForeseenThreads(PackedThreads):
    """
    Tells each thread what it should write, without the model, and frees nothing; `computed` asks the model in the end.

    Args:
        session (`SideQuestSession`): whose conversation it is.
        main (`CursorMap`): the main thread, to its end.
        says (`Callable`): what a side thread should write.
    """

    def __init__(self, session: SideQuestSession, main: CursorMap, says: Says):
        super().__init__(session.model)
        self.chat, self.ids, self.says = session.chat, main.ids, says
        self.written = {place for begin, end in main.turns for place in range(begin, end + 1)}
        self.side: Iterator[int] = iter(())  # what the newest side thread has still to write
        self.steps: list[Step] = []

    def hear(self, event: Event) -> None:
        if event.kind == "fork":
            self.side = iter(self.chat.said(self.says(event.turn, event.cursors)) + self.chat.end_of_turn[:1])

    def forward(
        self, feeds: Sequence[Feed], positions: list[int], ends: list[int], sees: Tensor | None
    ) -> list[Tensor]:
        """One-hot; 0 where nothing is to be written."""
        wanted = {}
        for (thread, added), end in zip(feeds, ends, strict=True):
            behind = thread.position + len(added)
            if thread.parent is not None:
                wanted[end - 1] = next(self.side, -1)
                if wanted[end - 1] < 0:  # what ends a message in this chat template ends no thread
                    raise OtherCourse
            elif added != self.ids[thread.position : behind]:
                raise OtherCourse
            elif behind in self.written:
                wanted[end - 1] = self.ids[behind]
        if sees is None:
            slots = len(self.positions)
            sees = torch.ones(ends[-1], slots + ends[-1], dtype=torch.bool, device=self.device).tril(slots)
        tokens = [token for _, added in feeds for token in added]
        adapters = [(thread.adapters, len(added)) for thread, added in feeds]
        self.steps.append(Step(tokens, positions, sees, adapters, wanted))
        said = torch.tensor([wanted.get(end - 1, 0) for end in ends], dtype=torch.long, device="cpu")
        return list(F.one_hot(said).float())

    def computed(self) -> Iterator[tuple[list[int], Tensor]]:
        """By forward, the tokens that should be written and the model's logits `[tokens, V]` for them."""
        cache: Cache | None = None
        while self.steps:
            chunk = [self.steps.pop(0)]
            while self.steps and sum(len(step.tokens) for step in chunk) < CHUNK:
                chunk.append(self.steps.pop(0))
            slots = chunk[-1].sees.shape[1]
            sees = torch.cat([F.pad(step.sees, (0, slots - step.sees.shape[1])) for step in chunk])
            tokens: list[int] = []
            wanted: dict[int, int] = {}
            for step in chunk:
                wanted |= {len(tokens) + index: token for index, token in step.wanted.items()}
                tokens += step.tokens
            self.adapters.choose([each for step in chunk for each in step.adapters])
            positions = [position for step in chunk for position in step.positions]
            mask = as_mask(sees, self.model.get_input_embeddings().weight.dtype)
            output = self._call(cache, tokens, positions, list(wanted), mask)
            cache = self._checked(output[CACHE_NAME])
            yield list(wanted.values()), output.logits[0]
