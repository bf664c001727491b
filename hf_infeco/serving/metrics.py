"""What is counted while serving, in Prometheus' text format."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counters:
    """
    Attributes:
        answers (`Counter[tuple[str, int]]`): by path and status; paths that are none of ours count as "other".
        in_progress (`int`): requests for text that are being answered.
        prompt_tokens, generated_tokens, first_tokens (`int`): of all requests so far.
        first_token_seconds (`float`): waited for all first tokens together.
    """

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    in_progress: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    first_tokens: int = 0
    first_token_seconds: float = 0.0


def as_text(counters: Counters, status: dict[str, Any], num_switches: int) -> str:
    """All of it, and what `FlyingManager.status()` says."""
    lines: list[str] = []

    def add(name: str, kind: str, about: str, samples: Mapping[str, float]) -> None:
        lines.extend([f"# HELP hf_infeco_{name} {about}", f"# TYPE hf_infeco_{name} {kind}"])
        lines.extend(f"hf_infeco_{name}{labels} {value}" for labels, value in samples.items())

    answers = {f'{{path="{path}",status="{code}"}}': count for (path, code), count in counters.answers.items()}
    add("answers_total", "counter", "HTTP answers by path and status.", answers)
    add("requests_in_progress", "gauge", "Requests for text that are being answered.", {"": counters.in_progress})
    add("requests_held", "gauge", "Requests that wait for a group of processes.", {"": status["held"]})
    add("requests_running", "gauge", "Requests that groups of processes have.", {"": status["running"]})
    add("requests_prefilling", "gauge", "Running requests without a first token.", {"": status["prefilling"]})
    shares = {f'{{rank="{rank}"}}': share for rank, share in status["kv_use"].items()}
    add("kv_use", "gauge", "Share of the KV cache that requests own, by process.", shares)
    add("prompt_tokens_total", "counter", "Tokens of prompts.", {"": counters.prompt_tokens})
    add("generated_tokens_total", "counter", "Tokens generated.", {"": counters.generated_tokens})
    seconds = {"_sum": counters.first_token_seconds, "_count": counters.first_tokens}
    add("first_token_seconds", "summary", "Seconds until the first token of a request.", seconds)
    add("width", "gauge", "Processes that run as one.", {"": status["width"]})
    add("groups", "gauge", "Groups of processes that serve.", {"": len(status["groups"])})
    add("switches_total", "counter", "Changes of the width.", {"": num_switches})
    return "\n".join(lines) + "\n"
