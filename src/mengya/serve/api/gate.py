"""Before any route: key, rate and host; the body, whole and within its limits. After it: figures, and a line of log.

No prompt, key or path is logged: of an error its type and where in the code it was raised.
"""

import asyncio
import logging
import math
import re
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mengya.serve.api.asgi import host_name, plain_method, replay, where
from mengya.serve.api.errors import ApiError, error_response
from mengya.serve.api.measures import Measures
from mengya.serve.api.settings import Settings

log = logging.getLogger("mengya.serve")
_OPEN = ("/health",)
"""Routes without a key."""
GONE = 499
"""The status that figures have for a client that left (nginx's number)."""


class Gone(Exception):
    """The client has left."""


class Gate:
    """An ASGI application around `app`, whose errors it turns into answers: none reaches the server below."""

    def __init__(self, app: ASGIApp, settings: Settings, measures: Measures, routes: set[str]):
        """`routes`: those that figures are kept for by name."""
        self._app, self._settings, self._measures, self._routes = app, settings, measures, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun, status = time.monotonic(), GONE
        started = False
        # Clients put addresses together: a slash too many is no other route. What watches over servers asks for heads.
        scope = dict(scope) | {
            "path": re.sub("//+", "/", scope["path"]).rstrip("/") or "/",
            "method": plain_method(scope),
        }

        async def sending(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            await send(message)

        try:
            try:
                self._admit(scope)
                body = await self._body(Headers(scope=scope), receive)
                await self._app(scope, replay(body, receive), sending)
            except Gone:
                status = GONE
            except Exception as error:
                refusal = error if isinstance(error, ApiError) else self._fault(error)
                if not started:
                    await error_response(refusal)(scope, receive, sending)
        finally:
            route = self._route(scope["path"])
            seconds = time.monotonic() - begun
            self._measures.requests.labels(route, str(status)).inc()
            self._measures.seconds.labels(route).observe(seconds)
            log.info("%s %s %d %.3fs", scope["method"], route, status, seconds)

    def _route(self, path: str) -> str:
        if path in self._routes:
            return path
        return "/v1/models/{id}" if path.startswith("/v1/models/") else "other"

    def _admit(self, scope: Scope) -> None:
        """ApiError 401, 403 or 429."""
        headers = Headers(scope=scope)
        hosts, keys = self._settings.hosts, self._settings.keys
        if hosts is not None and host_name(headers.get("host", "")) not in hosts:
            # A page whose own name was pointed at this machine could ask here otherwise (DNS rebinding).
            raise ApiError(
                403, f"Without keys this server answers only as {', '.join(hosts)}; start it with --api-keys."
            )
        if keys is None or scope["path"] in _OPEN:
            return
        name = keys.name_of(headers.get("authorization"))
        if name is None:
            message = "The API key is missing or unknown; send the header Authorization: Bearer KEY."
            raise ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})
        if scope["method"] == "POST" and (seconds := keys.wait(name)):
            raise ApiError(
                429,
                "This key has used up its requests for the moment; try again later.",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(math.ceil(seconds))},
            )

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """ApiError 413 if it is too large (the rest is read and forgotten, as most clients read no answer before all is
        sent), 408 if it does not come in time. Gone."""
        limit, seconds = self._settings.limits.body, self._settings.limits.body_seconds
        declared = headers.get("content-length", "0")
        refused = declared.isdecimal() and int(declared) > limit
        too_large = ApiError(413, f"The body is larger than {limit} bytes.", headers={"Connection": "close"})
        if refused and headers.get("expect", "").lower() == "100-continue":
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    part = message.get("body", b"")
                    size += len(part)
                    if refused := refused or size > limit:
                        parts.clear()
                    else:
                        parts.append(part)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            if not refused:
                slow = f"The body did not arrive within {seconds:g} seconds."
                raise ApiError(408, slow, headers={"Connection": "close"}) from None
        if refused:
            raise too_large
        return b"".join(parts)

    @staticmethod
    def _fault(error: Exception) -> ApiError:
        log.error("%s in %s", type(error).__name__, where(error))
        return ApiError(500, "The server failed to answer; its log says where.", code="internal_error")
