"""What a request may hold. What the server cannot honour is refused with a sentence, never ignored."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException
from transformers import PreTrainedTokenizerBase

# Fields of OpenAI's that change an answer and that nothing here honours, with the values that ask for nothing.
NOT_HONOURED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "generation_config": (),
    "logit_bias": ({},),
    "logprobs": (),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "seed": (),
    "suffix": ("",),
    "tool_choice": ("auto",),
    "top_logprobs": (),
    "verbosity": (),
    "web_search_options": (),
}
KINDS = {"chat_template_kwargs": dict, "parallel_tool_calls": bool, "stream": bool, "tools": list}
RANGES = {"temperature": (0.0, 2.0), "top_p": (1e-6, 1.0)}
COUNTS = ("max_tokens", "max_completion_tokens")
MOST_STOPS = 16  # each is looked for in every piece of a text
JSON_NAMES = {dict: "object", bool: "boolean", list: "array"}

# A client must not send a template of its own, which the server would run.
OF_THE_TOKENIZER = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
OF_THE_TOKENIZER |= {"conversations", "load_audio_from_video", "messages"}  # given to it or to the template already


def refuse(sentence: str) -> HTTPException:
    return HTTPException(status_code=400, detail=sentence)


def check_fields(body: Mapping[str, Any]) -> None:
    """
    Raises:
        HTTPException: 400, for a field that cannot be honoured or has no sensible value.
    """
    for field, neutral in NOT_HONOURED.items():
        value = body.get(field)
        if value is not None and value is not False and value not in neutral:
            raise refuse(f"{field}={_short(value)} is not supported. Leave it out.")
    for field, kind in KINDS.items():
        if body.get(field) is not None and not isinstance(body[field], kind):
            raise refuse(f"{field}={_short(body[field])} must be a JSON {JSON_NAMES[kind]}.")
    if body.get("parallel_tool_calls") is False:
        raise refuse("parallel_tool_calls=False is not supported: nothing limits a model's calls. Leave it out.")
    for field, (least, most) in RANGES.items():
        value = body.get(field)
        if value is not None and not (_is_number(value) and least <= value <= most):
            raise refuse(f"{field}={_short(value)} must be a number from {least:g} to {most:g}.")
    for field in COUNTS:
        value = body.get(field)
        if value is not None and not (type(value) is int and value >= 1):
            raise refuse(f"{field}={_short(value)} must be a whole number of at least 1.")
    stops = stops_of(body)
    if len(stops) > MOST_STOPS or any(not isinstance(stop, str) or not stop for stop in stops):
        raise refuse(f"stop={_short(stops)} must be at most {MOST_STOPS} strings, none of them empty.")


def check_chat(body: Mapping[str, Any]) -> None:
    """
    Raises:
        HTTPException: 400, for messages that are none, or hold more than text, or settings that are no template's.
    """
    if taken := sorted(set(body.get("chat_template_kwargs") or {}) & OF_THE_TOKENIZER):
        raise refuse(f"chat_template_kwargs must not set {taken}: they are for the model's own template to read.")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise refuse("messages must be a list of at least one message with role and content.")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise refuse(f"{where} must be an object with a role.")
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list) or not all(_is_call(call) for call in calls):
            raise refuse(f"{where}.tool_calls must be a list of functions with name and arguments.")
        content = message.get("content")
        if (content is None and calls) or isinstance(content, str):
            continue
        if not isinstance(content, list) or not all(_is_text(part) for part in content):
            raise refuse(f"{where}.content must be text: this server reads neither pictures nor sound.")


def stops_of(body: Mapping[str, Any]) -> Sequence[Any]:
    """The strings at which an answer ends."""
    stop = body.get("stop")
    return stop if isinstance(stop, list) else [] if stop is None else [stop]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    return isinstance(function, dict) and {"name", "arguments"} <= set(function)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
