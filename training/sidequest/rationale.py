"""Reasons for the commands, written by a chat model that is told the labels, as in the paper."""

import dataclasses
from typing import Any

from transformers import pipeline
from transformers.utils import logging

from .samples import SideSample, Trace, command

PROMPT = (
    "Below is the conversation of an agent so far; its tool results are numbered. Results {seen} are open. From here "
    "on it needs {used}, and no longer needs {stale}. Say in one or two sentences, without braces, which of them are "
    "still needed for what, and why the others are not.\n\n{text}"
)


def with_reasons(traces: list[Trace], model: str) -> list[Trace]:
    """The traces with reasons in the words of `model`, greedy; the commands stay what the labels say."""
    writer = pipeline("text-generation", model=model, dtype="auto")
    return [
        dataclasses.replace(trace, samples=[_reasoned(writer, trace, sample) for sample in trace.samples])
        for trace in logging.tqdm(traces, desc="reasons")
    ]


def _reasoned(writer: Any, trace: Trace, sample: SideSample) -> SideSample:
    turns = [at for at, message in enumerate(trace.messages) if message["role"] == "assistant"]
    text = "\n".join(f"{message['role']}: {message['content']}" for message in trace.messages[: turns[sample.turn]])
    used = [cursor for cursor in sample.open if cursor not in sample.stale]
    question = PROMPT.format(seen=sample.open, used=used or "none", stale=sample.stale or "none", text=text)
    said = writer([{"role": "user", "content": question}], max_new_tokens=128, do_sample=False)
    reason = said[0]["generated_text"][-1]["content"].translate({ord("{"): None, ord("}"): None}).strip()
    return dataclasses.replace(sample, target=command(sample.open, sample.stale, reason))
