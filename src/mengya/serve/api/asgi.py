"""What both gates, of the API and of the page, do with a request."""

import traceback
from urllib.parse import urlsplit

from starlette.types import Message, Receive, Scope


def host_name(host: str) -> str:
    """A Host header without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def plain_method(scope: Scope) -> str:
    """GET for HEAD, whose answer has the same head; the server below leaves its body out."""
    return "GET" if scope["method"] == "HEAD" else scope["method"]


def replay(body: bytes, receive: Receive) -> Receive:
    """The body at once, then what comes from the client: that it leaves."""
    left: bytes | None = body

    async def replayed() -> Message:
        nonlocal left
        if left is None:
            return await receive()
        given, left = left, None
        return {"type": "http.request", "body": given, "more_body": False}

    return replayed


def where(error: Exception) -> str:
    """The functions and lines of an error, without what they were given."""
    return " < ".join(f"{f.name}:{f.lineno}" for f in reversed(traceback.extract_tb(error.__traceback__)[-3:]))
