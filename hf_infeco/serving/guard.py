"""What stands before the endpoints: the key, whose page asks, requests at a time, and the count of all answers."""

import ipaddress
import secrets
from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse

from .metrics import Counters

OPEN = ("/", "/health")  # without a key: the page, which asks for it, and for whoever watches the server
READING = ("GET", "HEAD", "OPTIONS")


def error_body(status: int, sentence: str) -> dict[str, Any]:
    """In the shape in which OpenAI's client looks for what went wrong."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": sentence, "type": kind, "code": status}}


def error_response(status: int, sentence: str) -> JSONResponse:
    return JSONResponse(error_body(status, sentence), status_code=status)


class Guard:
    """
    An ASGI app around another one, which sees all of its answers.

    Args:
        paths (`frozenset[str]`): that there are.
        key (`str`, *optional*): that clients show as `Authorization: Bearer KEY`.
        max_requests (`int`): requests for text at a time.
        host (`str`): the name, beside localhost, by which this machine may be called without a key.
    """

    def __init__(
        self, app: Any, paths: frozenset[str], key: str | None, max_requests: int, counters: Counters, host: str
    ):
        self.app, self.paths, self.key, self.host = app, paths, key, host
        self.max_requests, self.counters = max_requests, counters

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"] if scope["path"] in self.paths else "other"

        async def counting(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.counters.answers[path, message["status"]] += 1
            await send(message)

        if self.key is not None and path not in OPEN and not self._shows_key(scope):
            sentence = "The key is missing or wrong: send it as `Authorization: Bearer KEY`."
            return await error_response(401, sentence)(scope, receive, counting)
        if scope["method"] not in READING and _is_of_another_site(scope):
            sentence = "A page of another site asks this. Open the page of this server itself."
            return await error_response(403, sentence)(scope, receive, counting)
        if self.key is None and path not in OPEN and not self._is_called_by_its_name(scope):
            sentence = "Call this server by its address or by localhost, or start it with a key, such as by --api-key."
            return await error_response(403, sentence)(scope, receive, counting)
        if scope["method"] != "POST" or not path.startswith("/v1/"):
            return await self.app(scope, receive, counting)
        if self.counters.in_progress >= self.max_requests:
            sentence = f"{self.max_requests} requests are being answered already. Try again in a moment."
            return await error_response(429, sentence)(scope, receive, counting)
        self.counters.in_progress += 1
        try:
            await self.app(scope, receive, counting)
        finally:
            self.counters.in_progress -= 1

    def _shows_key(self, scope: Any) -> bool:
        shown = dict(scope["headers"]).get(b"authorization", b"")
        return secrets.compare_digest(shown, f"Bearer {self.key}".encode())

    def _is_called_by_its_name(self, scope: Any) -> bool:
        """A page in a browser reaches this machine by a name of its own that it has resolve to an address of ours."""
        called = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        try:
            name = urlsplit(f"//{called}").hostname or ""
            if name in ("localhost", self.host.lower()):
                return True
            ipaddress.ip_address(name)
            return True
        except ValueError:
            return False


def _is_of_another_site(scope: Any) -> bool:
    """Whether a browser asks for a page that another server gave it. Clients that are no browser tell neither."""
    headers = dict(scope["headers"])
    if (site := headers.get(b"sec-fetch-site")) is not None:  # right behind proxies that change `Host` too
        return site not in (b"same-origin", b"none")
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2] != headers.get(b"host")
