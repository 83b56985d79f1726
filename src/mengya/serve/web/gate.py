"""Before any route of the page: whose request it is, from where, how large; after it, what a browser may do with the
answer.

Of Gradio's many routes only the calls of our own endpoints are open: neither files nor addresses can be asked for
through it, and what is sent to it holds nothing that it would take for a file.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mengya.serve.api.asgi import host_name, plain_method, replay, where
from mengya.serve.web.users import Users, Visitor
from mengya.text.json_text import parse_json, whole_characters

log = logging.getLogger("mengya.web")
OWNER = "mengya.owner"
"""Where the owner stands in the scope of a request."""
SESSION = "mengya.session"
"""And the session; "" where there is none."""
GRADIO = "/gradio"
CALL = f"{GRADIO}/gradio_api/run/"
"""And the name of an endpoint."""
_OPEN = re.compile(r"/|/sign-in|/sign-out|/page/[a-z.-]+|/favicon\.ico")
"""Routes without an owner."""
_BODY = 4_000_000
"""Bytes of a call."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with "no-referrer" browsers do not say where a form comes from
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Gate:
    def __init__(
        self, app: ASGIApp, users: Users, hosts: Sequence[str] | None, endpoints: Mapping[str, Sequence[type]]
    ):
        """`hosts`: the names under which the server answers; None: any. `endpoints`: name -> types of what it takes."""
        self._app, self._users, self._hosts = app, users, hosts
        self._calls = {CALL + name: types for name, types in endpoints.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return None

        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        visitor = self._visitor(scope)
        owner, session = visitor or (None, "")
        scope = dict(scope) | {OWNER: owner, SESSION: session, "method": plain_method(scope)}
        try:
            refusal = self._refusal(scope)
            if refusal is None and scope["path"].startswith(GRADIO):
                body = await _call(receive, self._calls[scope["path"]])
                refusal = body if isinstance(body, Response) else None
                if not isinstance(body, Response):
                    scope = scope | {"headers": _with_length(scope["headers"], len(body))}
                    receive = replay(body, receive)
            await (refusal or self._app)(scope, receive, sending)
        except Exception as error:  # said without what was asked; the connection breaks if the answer has begun
            log.error("%s: %s", type(error).__name__, where(error))
            if started:
                raise
            await refused(500, "the server failed; its log says where")(scope, receive, sending)

    def _visitor(self, scope: Scope) -> Visitor | None:
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(Headers(scope=scope).get("cookie", ""))
        except CookieError:
            return None
        found = cookies.get(self._users.cookie)
        return self._users.visitor(found.value) if found else None

    def _refusal(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if self._hosts is not None and host_name(host) not in self._hosts:
            # A page whose own name was pointed at this machine could ask here otherwise (DNS rebinding).
            return refused(403, f"this server answers only as {', '.join(self._hosts)}; start it with --keys")
        site = headers.get("sec-fetch-site", "none")
        from_here = _from_here(headers.get("origin"), host) and site in ("same-origin", "none")
        if scope["method"] != "GET" and not from_here:
            return refused(403, "pages of other sites may not ask here")
        if path.startswith(GRADIO) and not (scope["method"] == "POST" and path in self._calls):
            return refused(404, "there is nothing here")
        if scope[OWNER] is None and not _OPEN.fullmatch(path):
            return refused(401, "sign in first: open the page anew")
        return None


def _from_here(origin: str | None, host: str) -> bool:
    """Whether a page of this server asks, or no page."""
    try:
        return origin is None or urlsplit(origin).netloc == host
    except ValueError:
        return False


def refused(status: int, why: str) -> Response:
    return JSONResponse({"error": why}, status)


async def _call(receive: Receive, types: Sequence[type]) -> bytes | Response:
    """The body of a call of an endpoint: {"data": [...]} alone."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _BODY:
            return refused(413, f"the message is larger than {_BODY // 1_000_000} MB")
        if not message.get("more_body", False):
            break
    try:
        data = whole_characters(parse_json(body.decode())["data"])
    except (ValueError, KeyError, TypeError):
        return refused(400, 'a call is {"data": [...]}')
    if not isinstance(data, list) or len(data) != len(types):
        return refused(400, f"this call takes {len(types)} values")
    if not all(isinstance(value, kind) and _plain(value) for value, kind in zip(data, types, strict=True)):
        return refused(400, "a value of this call is of another type")
    return json.dumps({"data": data}).encode()


def _plain(value: Any) -> bool:
    """Gradio takes an object with "path" or "url" and "meta" for a file, and would fetch it: so none has these, or an
    object in it."""
    if isinstance(value, list):
        return all(isinstance(each, str) for each in value)
    if isinstance(value, dict):
        return not {"path", "url", "meta"} & value.keys() and not any(
            isinstance(each, dict) or not _plain(each) for each in value.values()
        )
    return True


def _with_length(headers: Sequence[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name not in (b"content-length", b"transfer-encoding")]
    return [*kept, (b"content-length", str(length).encode())]
