"""One conversation of an agent: turns, tools, side threads, each a generator of what goes through the model next."""

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from .. import compat
from .cursors import CursorMap
from .record import Event, Record
from .threads import Feed, Thread, Threads
from .tools import Call

if TYPE_CHECKING:
    from .session import SideQuestSession

MAIN, SIDE = "main", "side"

Request = Feed  # answered by the logits `[V]` behind the last token
Steps = Generator[Request, Tensor, None]
Written = tuple[list[int], bool]  # tokens, and whether the model ended them by itself


class ContextFull(ValueError):
    """
    The next tokens do not fit into the model's positions. Nothing was lost: `conversation` has the messages so far.
    """

    def __init__(self, message: str, conversation: "Conversation"):
        super().__init__(message)
        self.conversation = conversation


class Strand:
    """
    A side thread on its way.

    Attributes:
        open_cursors (`list[int]`): those that it was forked with, at `turn`.
        limit (`int`): tokens after which it is given up.
        is_done (`bool`): whether `result`, its text and whether it ended by itself, is there.
    """

    def __init__(self, conversation: "Conversation", thread: Thread, prompt: list[int], limit: int):
        self.open_cursors, self.turn, self.limit = list(conversation.open_cursors), conversation.turn, limit
        self.is_done, self.result = False, ("", False)
        self.conversation, self.thread = conversation, thread
        self.steps = self._steps(prompt)

    def _steps(self, prompt: list[int]) -> Steps:
        conversation = self.conversation
        context = conversation.cursors.ids[: self.thread.position]

        def choose(written: list[int], logits: Tensor) -> int:
            return int(conversation.processed([*context, *written], logits).argmax())

        written, has_ended = yield from conversation.write(self.thread, prompt, self.limit, choose)
        self.result = conversation.cursors.chat.text(written), has_ended
        self.is_done = True
        conversation.threads.close(self.thread)
        conversation.record.side_texts.append(self.result[0])
        conversation.record.side_tokens += len(written)


class Conversation:
    """
    Args:
        session (`SideQuestSession`): model, tools and settings.
        threads (`Threads`): the caches, which other conversations may share.
        messages (`list[dict]`): before the first turn.
        streamer (`BaseStreamer`, *optional*): gets the opening, then what the main thread writes.
        on_event (`Callable`, *optional*): is told each `Event`.

    Attributes:
        turn (`int`): tool calls made.
        open_cursors (`list[int]`): those not deleted.
        answer (`str`, *optional*): the last text, once there is one without a call.
        failure (`ContextFull`, *optional*): why it has ended without one.
    """

    def __init__(
        self,
        session: "SideQuestSession",
        threads: Threads,
        messages: list[dict[str, Any]],
        streamer: BaseStreamer | None = None,
        on_event: Callable[[Event], None] | None = None,
    ):
        self.session, self.config, self.threads = session, session.config, threads
        self.policy = session.new_policy()
        self.cursors = CursorMap(session.chat)
        self.messages, self.streamer, self.on_event = list(messages), streamer, on_event
        self.record = Record()
        self.turn, self.open_cursors, self.used = 0, [], []  # type: ignore[var-annotated]
        self.answer: str | None = None
        self.limit = compat.max_positions(session.model.config)
        self.generator = session.generator()
        both = (self.config.main_adapters, self.config.side_adapters)
        self.main_adapters, self.side_adapters = both if any(both) else (threads.adapters.default,) * 2
        self.main = threads.open(self.main_adapters)
        self.side: Strand | None = None
        self.pending: dict[str, Request] = {}
        self.steps = self._steps()
        self.failure: ContextFull | None = None
        self.policy.begin(self)
        self._next(MAIN, self.steps, None)

    # ------------------------------------------------------------ what the driver calls

    @property
    def is_done(self) -> bool:
        return MAIN not in self.pending

    def requests(self) -> list[Request]:
        """What goes through the model next."""
        return list(self.pending.values())

    def proceed(self, logits: Sequence[Tensor]) -> None:
        """
        Goes on with what came of `requests`: with the side thread first, so that one that is complete is obeyed at
        the boundary that the main thread comes to.
        """
        answers = dict(zip(self.pending, logits, strict=True))
        self._count()
        if SIDE in answers and self.side is not None:
            self._next(SIDE, self.side.steps, answers[SIDE])
        self._next(MAIN, self.steps, answers[MAIN])

    def _close(self) -> None:
        """Gives the caches' memory back."""
        self.pending.clear()
        self.threads.close(self.main)
        if self.side is not None and not self.side.is_done:
            self.threads.close(self.side.thread)

    def _next(self, name: str, steps: Steps, logits: Tensor | None) -> None:
        try:
            self.pending[name] = next(steps) if logits is None else steps.send(logits)
        except StopIteration:
            self.pending.pop(name, None)
        except ContextFull as failure:
            self.failure = failure
            self.pending.clear()
        if self.is_done:
            self._close()

    def _count(self) -> None:
        record = self.record
        for thread, _ in self.pending.values():
            if thread is self.main:
                record.main_forwards += 1
                record.kv_reads += thread.resident
                record.peak_tokens = max(record.peak_tokens, thread.resident)
            else:
                record.side_kv_reads += thread.own if len(self.pending) > 1 else thread.resident
        record.peak_nbytes = max(record.peak_nbytes, self.threads.nbytes)

    # ------------------------------------------------------------ the main thread

    def _steps(self) -> Steps:
        opening = self.cursors.open(self.messages, self.session.toolbox.schemas)
        if self.streamer is not None:
            self.streamer.put(torch.tensor(opening, dtype=torch.long, device="cpu"))
        yield from self._read(opening)
        while True:
            yield from self.policy.at_boundary(self)
            text, last = yield from self._turn()
            self.messages.append({"role": "assistant", "content": text})
            call = self.session.tool_format.parse_call(text)
            if call is None or self.turn == self.config.max_turns:
                self.answer = None if call else text
                self.tell("answer", text=text)
                return
            self.used.append(self.session.tool_format.references(text))
            yield from self._read([*last, *self._call(call, text)])

    def _turn(self) -> Generator[Request, Tensor, tuple[str, list[int]]]:
        """The text of a turn, and its last token if that has not gone through the model."""
        prompt = self.cursors.begin_turn()
        written, has_ended = yield from self.write(self.main, prompt, self.config.max_new_tokens, self._say)
        self.record.main_tokens += len(written)
        return self.cursors.chat.text(written), [] if has_ended else written[-1:]

    def _call(self, call: Call, text: str) -> list[int]:
        """Runs a tool; the tokens that tell its result."""
        result, is_fine = self.session.toolbox.run(call)
        cursor = self.cursors.next_cursor
        message = self.session.tool_format.render_result(call, cursor, result)
        told = {"role": "tool", "content": message[1]} if isinstance(message, tuple) else message
        tokens = self.cursors.add_result(call, message)
        self.messages.append(told)
        self.open_cursors.append(cursor)
        self.turn += 1
        self.record.turns += 1
        self.record.tool_errors += not is_fine
        self.tell("turn", text=text, result=result, cursors=self.open_cursors)
        return tokens

    def _read(self, tokens: list[int]) -> Steps:
        self._check_room(len(tokens))
        yield self.main, tokens

    def write(
        self, thread: Thread, prompt: list[int], limit: int, choose: Callable[[list[int], Tensor], int]
    ) -> Generator[Request, Tensor, Written]:
        """Tokens that a thread writes behind a prompt. The last of them has gone through the model if they ended."""
        written: list[int] = []
        tokens = prompt
        while True:
            if thread is self.main:
                self._check_room(len(tokens))
            logits = yield thread, tokens
            token = choose(prompt + written, logits)
            if token in self.session.end_tokens:
                return written, True
            written.append(token)
            if thread is self.main:
                self.cursors.say([token])
            if len(written) == limit:
                return written, False
            tokens = [token]

    def _say(self, written: list[int], logits: Tensor) -> int:
        """The main thread's next token."""
        logits = self.processed(self.cursors.ids, logits)
        if self.config.temperature > 0:
            p = (logits / self.config.temperature).softmax(-1)
            token = int(torch.multinomial(p, 1, generator=self.generator))
        else:
            token = int(logits.argmax())
        if self.streamer is not None and token not in self.session.end_tokens:
            self.streamer.put(torch.tensor([token], dtype=torch.long, device="cpu"))
        return token

    def processed(self, ids: list[int], logits: Tensor) -> Tensor:
        processors = self.session.logits_processor
        if not processors:
            return logits
        return processors(torch.tensor([ids], dtype=torch.long, device=logits.device), logits[None])[0]

    def _check_room(self, count: int) -> None:
        position = self.main.position
        if self.limit is not None and position + count > self.limit:
            raise ContextFull(
                f"{count} more tokens at position {position} do not fit into the model's {self.limit} positions, "
                "which evicted tokens have used up as well. The error's `conversation` has the messages so far: start "
                "a session anew with fewer of them, or use a model with a longer context.",
                self,
            )

    # ------------------------------------------------------------ what policies call

    @property
    def is_side_due(self) -> bool:
        """Whether this is a boundary at which the model is asked what is stale."""
        return self.turn > 0 and self.turn % self.config.interval == 0 and bool(self.open_cursors)

    def fork(self) -> Strand | None:
        """Begins a side thread beside the main one; None (and a rejection) if it would not fit."""
        prompt = self.cursors.chat.trigger(self.config.trigger)
        room = self.config.max_side_tokens
        if self.limit is not None:
            room = min(room, self.limit - self.main.position - len(prompt))
        if room < 1:
            self.reject(f"a side thread does not fit into the model's {self.limit} positions")
            return None
        thread = self.threads.fork(self.main, self.side_adapters)
        self.side = Strand(self, thread, prompt, room)
        self.tell("fork", cursors=self.open_cursors)
        if not self.config.synchronous:
            self._next(SIDE, self.side.steps, None)
        return self.side

    def obey(self, ids: Sequence[int], since: int) -> None:
        """Deletes the cursors of a command, except those that the main thread used from turn `since` on."""
        self.tell("command", text=self.record.side_texts[-1], cursors=ids)
        in_use = set().union(*self.used[since:])
        self.record.spared += [cursor for cursor in ids if cursor in in_use]
        self.delete([cursor for cursor in ids if cursor not in in_use])

    def reject(self, reason: str) -> None:
        self.record.rejected.append(reason)
        self.tell("rejected", text=reason)

    def delete(self, ids: Sequence[int]) -> None:
        """Drops whole cursors."""
        if not ids:
            return
        tokens, nbytes = self.main.resident, self.threads.nbytes
        self.threads.evict(self.main, [self.cursors.spans[cursor] for cursor in ids])
        self.open_cursors = [cursor for cursor in self.open_cursors if cursor not in ids]
        self.record.deleted += [(self.turn, cursor) for cursor in ids]
        freed = {"tokens": tokens - self.main.resident, "nbytes": nbytes - self.threads.nbytes}
        self.tell("evicted", cursors=ids, **freed)

    def tell(self, kind: str, cursors: Sequence[int] = (), **details: Any) -> None:
        event = Event(kind, self.turn, cursors=tuple(cursors), **details)
        self.record.events.append(event)
        if self.on_event is not None:
            self.on_event(event)
