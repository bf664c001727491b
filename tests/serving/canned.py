"""The endpoints in this process, over a manager that says what it was told to say."""

import asyncio
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from transformers.generation.continuous_batching.requests import GenerationOutput, RequestStatus

from hf_infeco.serving import Limits, build_app

from ..flying.models import build
from .server import tokenizer


class Canned:
    """What the endpoints ask a `FlyingManager` for; each request is answered with the same tokens, one at a time."""

    def __init__(self, tokens: Sequence[int]):
        self.model, self.budgets, self.switches, self.asked = build("llama"), {1: 4064}, [], []
        self.output_router = SimpleNamespace(result_handlers={})
        self._tokens = list(tokens)

    def register_result_handler(self, request_id: str, callback: Any) -> None:
        self.output_router.result_handlers[request_id] = callback

    def cancel_request(self, request_id: str) -> None:
        pass

    def add_request(self, ids: list[int], request_id: str, **settings: Any) -> None:
        self.asked.append(settings)
        receive, loop = self.output_router.result_handlers[request_id], asyncio.get_running_loop()
        for count in range(1, len(self._tokens) + 1):
            is_last = count == len(self._tokens)
            status = RequestStatus.FINISHED if is_last else RequestStatus.DECODING
            output = GenerationOutput(request_id, ids, generated_tokens=self._tokens[:count], status=status)
            loop.call_soon(receive, output)

    def status(self) -> dict[str, Any]:
        return {"width": 1, "groups": [(0,)], "held": 0, "running": 0}


def app_of(manager: Canned, tokens: Any = None, **limits: Any) -> Any:
    return build_app(manager, tokens or tokenizer(), "canned", Limits(**limits))


def ask(app: Any, path: str, body: Any = None, host: str = "localhost", pieces: Any = None) -> tuple[int, str]:
    """
    Status and text of the answer to a POST of `body` as JSON, or a GET without one. Of a list of `pieces` the body
    is the first ones, and nothing comes after the last.
    """
    return asyncio.run(_ask(app, path, body, host, pieces))


async def _ask(app: Any, path: str, body: Any, host: str, pieces: Any) -> tuple[int, str]:
    headers = [(b"host", host.encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "GET" if body is pieces is None else "POST", "path": path, "headers": headers}
    scope |= {"query_string": b"", "http_version": "1.1", "server": ("127.0.0.1", 8000), "scheme": "http"}
    waiting = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    if pieces is not None:
        waiting = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return waiting.pop(0) if waiting else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent).decode()
