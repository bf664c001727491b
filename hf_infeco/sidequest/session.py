"""`SideQuestSession`: an agent that tidies its own context."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from .chat import ChatFormat
from .config import SideQuestConfig
from .conversation import ContextFull, Conversation
from .policies import Policy, SideQuest
from .record import Event, Record
from .threads import PackedThreads, SeparateThreads, Threads
from .tools import Toolbox, ToolFormat


@dataclass(frozen=True)
class SideQuestResult:
    """
    Attributes:
        answer (`str`, *optional*): the final text; None if `max_turns` tool calls brought none.
        messages (`list[dict]`): the whole conversation.
        record (`Record`): what it cost, and what was deleted.
    """

    answer: str | None
    messages: list[dict[str, Any]]
    record: Record


class SideQuestSession:
    """
    An agent: a chat model, its tools, and what becomes of their results in its context (SideQuest, arXiv 2602.22603).

    Each tool call with its result is a cursor, numbered as the model is shown it. A side thread of the same model
    names those that are stale, and their keys and values are dropped.

    Args:
        model (`PreTrainedModel`): a causal language model, patched by hf_infeco or not, or a PEFT model of one.
        tokenizer (`PreTrainedTokenizerBase`): with a chat template.
        tools (`Sequence[Callable]`): Python functions with type hints and docstrings.
        config (`SideQuestConfig`, *optional*): settings.
        policy (`Policy`, *optional*): what is dropped, and when; `SideQuest()` by default.
        tool_format (`ToolFormat`, *optional*): how calls are written and results told.
        logits_processor (`LogitsProcessorList`, *optional*): sees all tokens of a thread, evicted ones included, and
            the scores of the next.

    Raises:
        ValueError: for a tokenizer whose chat template cannot be used, and an attention that cannot be shared.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tools: Sequence[Callable],
        config: SideQuestConfig | None = None,
        *,
        policy: Policy | None = None,
        tool_format: ToolFormat | None = None,
        logits_processor: LogitsProcessorList | None = None,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.config = config or SideQuestConfig()
        self.policy = policy or SideQuest()
        self.tool_format = tool_format or ToolFormat()
        self.toolbox = Toolbox(tools)
        self.chat = ChatFormat(tokenizer, self.tool_format)
        self.logits_processor = logits_processor
        ends = model.generation_config.eos_token_id
        named = ends if isinstance(ends, list) else [ends]
        self.end_tokens = {token for token in (*named, tokenizer.eos_token_id) if token is not None}

    def run(
        self,
        messages: list[dict[str, Any]],
        *,
        streamer: BaseStreamer | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> SideQuestResult:
        """
        Answers a conversation: turns of thought and tool calls until a text has no call.

        Args:
            messages (`list[dict]`): with "role" and "content", up to the user's question.
            streamer (`BaseStreamer`, *optional*): gets the prompt's tokens, then those of the main thread.
            on_event (`Callable`, *optional*): is told each `Event` as it happens.

        Raises:
            ContextFull: if the next tokens do not fit into the model's positions.
        """
        threads = SeparateThreads(self.model) if self.waits else PackedThreads(self.model)
        try:
            conversation = Conversation(self, threads, messages, streamer, on_event)
            drive(threads, [conversation])
        finally:
            threads.finish()
            if streamer is not None:
                streamer.end()
        if conversation.failure is not None:
            raise conversation.failure
        return result_of(conversation)

    @property
    def waits(self) -> bool:
        """Whether its threads go through the model one after another."""
        return self.config.synchronous or self.policy.needs_own_cache

    def new_policy(self) -> Policy:
        """One without memory of another conversation."""
        return dataclasses.replace(self.policy)  # type: ignore[type-var]

    def generator(self) -> torch.Generator | None:
        """Of a conversation's sampling."""
        if self.config.seed is None:
            return None
        return torch.Generator(self.model.device).manual_seed(self.config.seed)


def drive(threads: Threads, conversations: Sequence[Conversation]) -> None:
    """Takes conversations to their ends, all that they ask for at a time in one step."""
    while running := [conversation for conversation in conversations if not conversation.is_done]:
        asked = [conversation.requests() for conversation in running]
        logits = iter(threads.step([request for requests in asked for request in requests]))
        for conversation, requests in zip(running, asked, strict=True):
            conversation.proceed([next(logits) for _ in requests])


def run_many(
    sessions: Sequence[SideQuestSession], conversations: Sequence[list[dict[str, Any]]]
) -> list[SideQuestResult | ContextFull]:
    """
    `session.run` for several sessions of one model at a time, each with its own conversation: all their threads go
    through the model in the same forwards, and none waits for another.

    Returns:
        the results, in order; in place of one that has outgrown the model's positions, the error that tells so.

    Raises:
        ValueError: for sessions of several models, and for one whose threads cannot be packed into one row.
    """
    if len({id(session.model) for session in sessions}) != 1 or any(session.waits for session in sessions):
        raise ValueError(
            "run_many takes sessions of one model, none of them synchronous or with a policy that drops other tokens "
            "in each layer: call run for each of the others."
        )
    threads = PackedThreads(sessions[0].model)
    try:
        paired = zip(sessions, conversations, strict=True)
        running = [Conversation(session, threads, messages) for session, messages in paired]
        drive(threads, running)
    finally:
        threads.finish()
    return [conversation.failure or result_of(conversation) for conversation in running]


def result_of(conversation: Conversation) -> SideQuestResult:
    return SideQuestResult(conversation.answer, conversation.messages, conversation.record)
