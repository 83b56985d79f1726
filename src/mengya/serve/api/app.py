"""The application: routes, and how their errors are told."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from mengya import __version__
from mengya.serve.api.bodies import ChatBody, CompletionBody, EmbeddingBody, OlderBody
from mengya.serve.api.chat import chat
from mengya.serve.api.completions import complete
from mengya.serve.api.embeddings import embed
from mengya.serve.api.errors import (
    ApiError,
    ErrorReply,
    error_response,
    from_http,
    from_validation,
    json_response,
)
from mengya.serve.api.gate import GONE, Gate, Gone
from mengya.serve.api.measures import Measures
from mengya.serve.api.older import generate
from mengya.serve.api.service import Service
from mengya.serve.api.settings import Settings
from mengya.text.json_text import parse_json, whole_characters

_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "A value that cannot be used"},
    401: {"description": "No known key"},
    403: {"description": "Another host name"},
    404: {"description": "No such model"},
    408: {"description": "The body did not come in time"},
    413: {"description": "The body is too large"},
    415: {"description": "The body is not plain JSON"},
    429: {"description": "Too much at once"},
    500: {"description": "A fault of the model or the server"},
    503: {"description": "The server is stopping"},
    504: {"description": "The answer took too long"},
}
_REFUSALS = {status: told | {"model": ErrorReply} for status, told in _REFUSALS.items()}


def create_app(settings: Settings) -> ASGIApp:
    """An ASGI application that answers for the models of `settings`, and never lets an error through."""
    measures = Measures(settings.models)
    service = Service(settings, measures)
    app = _Described(title="Mengya", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    routes = [_small_routes(service), _answering_routes(service)]
    for router in routes:
        app.include_router(router, responses=_REFUSALS)
    _tell_errors(app)
    names = {route.path for router in routes for route in router.routes if isinstance(route, APIRoute)}
    gate = Gate(app, settings, measures, names | {"/openapi.json"})
    return _Cors(gate, settings.cors_origins) if settings.cors_origins else gate


class _JsonRequest(Request):
    """A body is JSON of a bounded depth, in UTF-8, without halves of characters."""

    async def json(self) -> Any:
        try:
            text = (await self.body()).decode("utf-8-sig")  # files that Windows wrote begin with a mark
        except UnicodeDecodeError:
            raise ApiError(400, "The body is not UTF-8.") from None
        try:
            value = parse_json(text)
        except ValueError as error:
            raise ApiError(400, f"The body cannot be read: {error}.") from None
        return whole_characters(value) if re.search(r"\\u[dD][89a-fA-F]", text) else value


class _JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            headers = Headers(scope=request.scope)
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":  # which no page of another site can send without asking
                raise ApiError(
                    415, "The body must be JSON; send the header Content-Type: application/json.", code="not_json"
                )
            if (coding := headers.get("content-encoding", "identity").strip().lower()) not in ("", "identity"):
                message = f"A body in Content-Encoding {coding[:40]!r} is not understood; send it as it is."
                raise ApiError(415, message, code="not_plain")
            return await handle(_JsonRequest(request.scope, request.receive))

        return handler


def _answering_routes(service: Service) -> APIRouter:
    router = APIRouter(route_class=_JsonRoute)

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        return await chat(service, request, body)

    @router.post("/v1/completions")
    async def completions(request: Request, body: CompletionBody) -> Response:
        return await complete(service, request, body)

    @router.post("/v1/embeddings")
    async def embeddings(request: Request, body: EmbeddingBody) -> Response:
        return await embed(service, request, body)

    @router.post("/ai/llm/generation_stream")
    async def generation_stream(request: Request, body: OlderBody) -> Response:
        return await generate(service, request, body, streams=True)

    @router.post("/ai/llm/generation")
    async def generation(request: Request, body: OlderBody) -> Response:
        return await generate(service, request, body, streams=False)

    return router


def _small_routes(service: Service) -> APIRouter:
    router = APIRouter()

    def card(name: str) -> dict[str, Any]:
        context = service.settings.models[name].context
        made = {"created": service.created, "owned_by": "mengya"}
        return {"id": name, "object": "model", **made, "max_model_len": context}

    @router.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": [card(name) for name in service.settings.models]})

    @router.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        return json_response(card(service.model(model)[0]))

    @router.get("/health")
    async def health() -> Response:
        return json_response({"status": "ok"})

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(service.measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _tell_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return error_response(from_validation(error))

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return error_response(from_http(error))

    @app.exception_handler(Gone)
    async def gone(_: Request, error: Gone) -> Response:
        return Response(status_code=GONE)  # nobody reads it; the figures do

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return error_response(ApiError(500, "The server failed to answer; its log says where.", code="internal_error"))


class _Described(FastAPI):
    """FastAPI describes an error, 422, that this server does not give."""

    def openapi(self) -> dict[str, Any]:
        described = super().openapi()
        for path in described["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return described


class _Cors(CORSMiddleware):
    def __init__(self, app: ASGIApp, origins: Any):
        super().__init__(app, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        return error_response(ApiError(400, "This page may not ask here; start the server with --cors-origins."))
