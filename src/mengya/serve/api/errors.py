"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}` for everything that is not a success."""

import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from mengya.errors import UserError
from mengya.infer.request import TooLong

_WIRE_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "stop_ids": "stop_token_ids"}
_CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "body_too_large"}
_LINE_ENDS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"})


class ApiError(HTTPException):
    """What a client is told instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, message, dict(headers or {}))
        self.param, self.code = param, code or _CODES.get(status)

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status_code >= 500 else "invalid_request_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status_code, kind)
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    error: ErrorDetail


def to_json(value: Any) -> bytes:
    """On one line, whichever characters a client takes for line ends; characters beyond ASCII as they are."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(_LINE_ENDS).encode()


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(value), status, dict(headers or {}), media_type="application/json")


def error_response(error: ApiError) -> Response:
    return json_response(error.body, error.status_code, error.headers)


def told(message: str, sources: Mapping[str, str]) -> str:
    """What a client may read of it: a name (`sources`: path -> name) for each path."""
    for source, name in sources.items():
        message = message.replace(source, name)
    return message


def from_user_error(error: UserError, param: str | None = None, sources: Mapping[str, str] | None = None) -> ApiError:
    """400, with the name of the field if the message begins with one; `sources` (path -> name) are not told."""
    if isinstance(error, TooLong):  # clients look for these words
        message = (
            f"This model's maximum context length is {error.context} tokens, but the prompt has {error.tokens} tokens. "
            "Please shorten it."
        )
        return ApiError(400, message, param=param, code="context_length_exceeded")
    message = told(str(error), sources or {})
    if named := re.match(r"(\w+)=", message):
        param = _WIRE_NAMES.get(named[1], named[1])
        message = param + message[named.end(1) :]
    return ApiError(400, message, param=param)


def from_validation(error: RequestValidationError) -> ApiError:
    """400, for the first of the faults; the value itself, which may be a prompt, is not repeated."""
    faults = error.errors()
    param = _param(faults[0]["loc"])
    if faults[0]["type"] == "missing" and not param:
        return ApiError(400, "The body is empty; send a JSON object.")
    if not param:
        return ApiError(400, "The body must be a JSON object.")
    same = [fault for fault in faults if _param(fault["loc"]).split("[")[0] == param.split("[")[0]]  # of a union, each
    reasons = list(dict.fromkeys(fault["msg"] for fault in same))[:3]
    return ApiError(400, f"{param}: {'; or: '.join(reasons)}", param=param)


def _param(location: Sequence[str | int]) -> str:
    """("body", "stop", "list[str]", 3) -> "stop[3]": pydantic also names the members of unions that it tried."""
    name = ""
    for part in location[1:]:
        if isinstance(part, int):
            name += f"[{part}]"
        elif re.fullmatch(r"[a-z_]+", part) and part not in ("str", "int", "float", "bool", "nullable"):
            name += f".{part}" if name else part
    return name


def from_http(error: StarletteHTTPException) -> ApiError:
    """Of what the framework raises: no such route, a method that a route has not."""
    if isinstance(error, ApiError):
        return error
    message = str(error.detail or HTTPStatus(error.status_code).phrase)
    if error.status_code == 404:
        message = "There is no such route here, but /v1/chat/completions and others; a client's base URL ends in /v1."
    return ApiError(error.status_code, message, headers=error.headers)
