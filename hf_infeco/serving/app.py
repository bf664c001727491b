"""The endpoints: OpenAI's completions and chats, the status of the processes and its page, and switching the width."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from jinja2 import TemplateError
from starlette.exceptions import HTTPException as AnyHTTPException
from transformers import PreTrainedTokenizerFast

from ..flying import FlyingManager
from .checks import refuse
from .generation import FlyingGeneration
from .guard import Guard, error_body, error_response
from .handlers import Chats, Completions
from .metrics import Counters, as_text

BODY_SECONDS = 30  # that a request may take to arrive: it has one of the places meanwhile
GONE = 499  # nginx's word for a client that left; nobody reads it but the counters
PAGE = Path(__file__).with_name("status.html")
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    # It loads nothing, asks this server only, and lies in no frame, where another page could have its buttons pressed.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        key (`str`, *optional*): that clients must show.
        max_requests (`int`): requests for text at a time; more are answered with 429.
        max_body (`int`): bytes of a request; larger ones are answered with 413.
    """

    key: str | None = None
    max_requests: int = 64
    max_body: int = 4 << 20


def build_app(
    manager: FlyingManager, tokenizer: PreTrainedTokenizerFast, name: str, limits: Limits, host: str = "localhost"
) -> Guard:
    """
    An app over a manager that has started, in the process that is its front.

    Args:
        manager (`FlyingManager`): made with `per_request_processors` and the generation settings
            `generation.SAMPLING`.
        name (`str`): of the model, as clients call it.
        host (`str`): by which they may call this machine, beside its addresses and localhost.
    """
    app, counters = FastAPI(openapi_url=None), Counters()
    _add_texts(app, manager, tokenizer, name, counters, limits.max_body)
    _add_state(app, manager, name, counters, limits.max_body)
    app.add_exception_handler(AnyHTTPException, _refused)
    app.add_exception_handler(Exception, _failed)
    paths = frozenset(route.path for route in app.routes)  # type: ignore[attr-defined]
    return Guard(app, paths, limits.key, limits.max_requests, counters, host)


def _add_texts(
    app: FastAPI,
    manager: FlyingManager,
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    counters: Counters,
    max_body: int,
) -> None:
    """What OpenAI's clients ask."""
    handled, created = (FlyingGeneration(manager, counters), name, manager.model, tokenizer), int(time.time())

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _answer(request, Completions(*handled), await _body_of(request, max_body), "cmpl")

    @app.post("/v1/chat/completions")
    async def chats(request: Request) -> Response:
        return await _answer(request, Chats(*handled), await _body_of(request, max_body), "chatcmpl")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        entry = {"id": name, "object": "model", "created": created, "owned_by": "hf_infeco"}
        return {"object": "list", "data": [entry]}


def _add_state(app: FastAPI, manager: FlyingManager, name: str, counters: Counters, max_body: int) -> None:
    """How the processes are, for people and for who watches them, and the switch."""
    page = HTMLResponse(PAGE.read_bytes(), headers=PAGE_HEADERS)

    def current_status() -> dict[str, Any]:
        return {"model": name, **manager.status(), "generated_tokens": counters.generated_tokens}

    @app.get("/")
    async def status_page() -> Response:
        return page

    @app.get("/health")
    async def health() -> dict[str, str]:
        if not manager.is_running():
            raise HTTPException(status_code=503, detail="The loop of this process does not run.")
        return {"status": "ok"}

    @app.get("/status")
    async def status() -> dict[str, Any]:
        return current_status()

    @app.post("/switch")
    async def switch(request: Request) -> dict[str, Any]:
        width = (await _body_of(request, max_body)).get("width")
        if type(width) is not int:
            raise refuse(f'width={width!r} must be a whole number, as in {{"width": 1}}.')
        try:
            await asyncio.to_thread(manager.switch, width)
        except ValueError as error:
            raise refuse(str(error)) from error
        except RuntimeError as error:
            raise HTTPException(status_code=503, detail=str(error)) from error
        return current_status()

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        text = as_text(counters, manager.status(), len(manager.switches))
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


async def _refused(request: Request, error: Any) -> Response:
    return error_response(error.status_code, str(error.detail))


async def _failed(request: Request, error: Exception) -> Response:
    return error_response(500, f"{type(error).__name__} in the server; its log says more.")


async def _body_of(request: Request, most: int) -> dict[str, Any]:
    """The JSON object that a request brings."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        # A browser lets any page send a form or plain text to a server on this machine, and no JSON.
        raise HTTPException(status_code=415, detail="Send JSON with the header `Content-Type: application/json`.")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    sentence = f"The body is larger than {most:,} bytes. Send less at a time."
                    raise HTTPException(status_code=413, detail=sentence)
    except TimeoutError as error:
        sentence = f"The body did not arrive within {BODY_SECONDS} seconds. Send it again."
        raise HTTPException(status_code=408, detail=sentence) from error
    try:
        found = json.loads(body)
        json.dumps(found, ensure_ascii=False).encode()  # half a character, which no tokenizer takes, fails here
    except (ValueError, RecursionError) as error:
        raise refuse(f"The body is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise refuse(f"The body must be a JSON object, not {type(found).__name__}.")
    return found


async def _answer(request: Request, handler: Completions | Chats, body: dict[str, Any], kind: str) -> Response:
    """What a handler answers, unless the client leaves: then its request is cancelled."""
    request_id = f"{kind}-{uuid.uuid4().hex}"
    work = asyncio.ensure_future(handler.handle_request(body, request_id))
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=GONE)
        response = work.result()
    except (ValueError, TemplateError) as error:  # a request that does not fit, messages that a template refuses
        raise refuse(str(error)) from error
    except RuntimeError as error:
        raise HTTPException(status_code=503, detail=str(error)) from error
    finally:
        for task in (work, gone):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await work
    if isinstance(response, StreamingResponse):
        response.body_iterator = _until_done(response.body_iterator)
    response.headers["x-request-id"] = request_id
    return response


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _until_done(chunks: Any) -> AsyncIterator[Any]:
    """With errors and the end as OpenAI's streams have them."""
    async with contextlib.aclosing(chunks):
        try:
            async for chunk in chunks:
                yield chunk
        except HTTPException as error:
            yield f"data: {json.dumps(error_body(error.status_code, error.detail))}\n\n"
        yield "data: [DONE]\n\n"
