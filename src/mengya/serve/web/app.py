"""The application: the page and its streams as routes, what it can do as endpoints of Gradio.

Gradio's own components keep no branches, no place beside an answer, and an answer ends with the browser that asked for
it; so the page is ours, and Gradio carries its calls.
"""

import asyncio
import inspect
import json
import math
import os
import re
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, get_origin
from unicodedata import category
from urllib.parse import quote

from fastapi import FastAPI, Request
from starlette.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from mengya.errors import UserError
from mengya.infer.backends import Backend
from mengya.infer.request import Sampling
from mengya.rag.reading.names import name_as_text
from mengya.rag.retrieve import Retriever
from mengya.serve.api.asgi import where
from mengya.serve.web import archive, pictures
from mengya.serve.web.actions import Actions, place_of, shown_live, shown_saved
from mengya.serve.web.answers import Answer, Answers
from mengya.serve.web.backup import to_json
from mengya.serve.web.gate import GRADIO, OWNER, SESSION, Gate, log, refused
from mengya.serve.web.library import Library
from mengya.serve.web.markdown import to_markdown
from mengya.serve.web.store import Missing, Store, in_words, new_id
from mengya.serve.web.users import Guesses, Users

PAGE = Path(__file__).parent / "page"
_EVERY = 0.08
"""Seconds between two looks at an answer that is being written."""
_FOLLOWED = 3
"""Answers that an owner follows at a time."""
_FORM = 10_000
"""Bytes of a form with a key."""
_BACKUP = 2_000_000_000
"""Bytes of a backup that is taken in."""
_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)\d)", re.IGNORECASE)
"""Names of Windows for something else than files, whatever their ending."""
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Site:
    """What the application is made of."""

    models: Mapping[str, Backend]
    store: Store
    answers: Answers
    library: Library
    users: Users
    sampling: Sampling = field(default_factory=Sampling)
    hosts: Sequence[str] | None = None
    """Names under which it answers; None: any."""
    seeing: Collection[str] = ()
    """Names of the models that take pictures."""
    retriever: Retriever = field(default_factory=Retriever)
    """How documents are searched."""


def create_app(site: Site) -> ASGIApp:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported: it would tell its makers of our use
    import gradio

    app = FastAPI(title="Mengya", docs_url=None, redoc_url=None, openapi_url=None)
    _pages(app, site)
    _streams(app, site)
    _files(app, site)
    actions = Actions(site.store, site.answers, site.library, site.models, site.sampling, site.seeing, site.retriever)
    methods = {name: m for name, m in inspect.getmembers(actions, inspect.ismethod) if not name.startswith("_")}
    with gradio.Blocks(analytics_enabled=False) as blocks:
        for name, method in methods.items():
            gradio.api(_endpoint(method, gradio.Request), api_name=name, queue=False)
    gradio.mount_gradio_app(app, blocks, path=GRADIO, ssr_mode=False, run_history=False, allowed_paths=[])
    takes = {name: _types(method) for name, method in methods.items()}
    return Gate(app, site.users, site.hosts, takes)


def _types(method: Callable[..., Any]) -> list[type]:
    """Of what a method takes, but for the owner."""
    _, *others = inspect.signature(method).parameters.values()
    return [get_origin(p.annotation) or p.annotation for p in others]


def _endpoint(method: Callable[..., Any], request_type: type) -> Callable[..., dict]:
    """A function that Gradio can call: the owner comes from the request, never from what was sent."""

    def call(request: Any, *values: Any) -> dict:
        owner = request.request.scope[OWNER]
        return _outcome(lambda: method(owner, *values))

    first, *others = inspect.signature(method).parameters.values()
    request = first.replace(name="request", annotation=request_type)
    call.__signature__ = inspect.Signature([request, *others], return_annotation=dict)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in (request, *others)} | {"return": dict}
    call.__name__, call.__doc__ = method.__name__, method.__doc__
    return call


def _outcome(function: Callable[[], Any]) -> dict[str, Any]:
    """{"value": …}, or {"error": what the user should know}, with "missing" if the conversation is not there."""
    try:
        return {"value": function()}
    except Missing as error:
        return {"error": str(error), "missing": True}
    except UserError as error:
        return {"error": str(error)}
    except sqlite3.Error as error:
        return {"error": in_words(error)}
    except Exception as error:  # said without what was asked, which is nobody else's
        log.error("%s: %s", type(error).__name__, where(error))
        return {"error": "the server failed; its log says where"}


def _pages(app: FastAPI, site: Site) -> None:
    users, guesses = site.users, Guesses()
    files = {path.name: path for path in PAGE.iterdir() if path.suffix in _TYPES}

    def signed(request: Request, response: Response, owner: str, session: str = "") -> Response:
        secure, value = request.url.scheme == "https", users.sign(owner, session)
        response.set_cookie(users.cookie, value, users.seconds, secure=secure, httponly=True, samesite="lax")
        return response

    @app.get("/")
    def page(request: Request) -> Response:
        owner = request.scope[OWNER] or users.newcomer()
        response = FileResponse(files["index.html" if owner else "sign-in.html"], headers={"Cache-Control": "no-store"})
        return signed(request, response, owner, request.scope[SESSION]) if owner else response

    @app.get("/page/{name}")
    def part(name: str) -> Response:
        if name not in files or name == "index.html":
            return refused(404, "there is nothing here")
        return FileResponse(files[name], media_type=_TYPES[files[name].suffix], headers={"Cache-Control": "no-cache"})

    @app.get("/favicon.ico")
    def icon() -> Response:
        return FileResponse(files["sprout.svg"], media_type="image/svg+xml")

    @app.post("/sign-in")
    async def sign_in(request: Request) -> Response:
        parts: list[bytes] = []
        if not await _received(request, _FORM, parts.append):
            return refused(413, "this is no key")
        address = request.client.host if request.client else ""
        if seconds := guesses.wait(address):
            headers = {"Retry-After": str(math.ceil(seconds)), "Cache-Control": "no-store"}
            return FileResponse(files["sign-in.html"], 429, headers)
        owner = users.with_key(_field(b"".join(parts).decode("utf-8", "replace"), "key"))
        if owner is None:
            guesses.wrong(address)
            await asyncio.sleep(0.5)  # who guesses waits
            return RedirectResponse("/?wrong", 303)
        return signed(request, RedirectResponse("/", 303), owner)

    @app.post("/sign-out")
    def sign_out(request: Request) -> Response:
        try:
            users.end(request.scope[SESSION])
        except sqlite3.Error as error:
            log.error("a session has ended only until the server is started anew: %s", in_words(error))
        response = RedirectResponse("/", 303)
        response.delete_cookie(users.cookie)
        return response


def _field(form: str, name: str) -> str:
    from urllib.parse import parse_qs

    return parse_qs(form).get(name, [""])[0].strip()


def _streams(app: FastAPI, site: Site) -> None:
    following: Counter[str] = Counter()  # owner -> answers that they follow

    @app.get("/answers/{message}")
    async def follow(request: Request, message: str) -> Response:
        events = _followed(site, following, request.scope[OWNER], request.scope[SESSION], message)
        return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _followed(site: Site, following: Counter[str], owner: str, session: str, message: str) -> AsyncIterator[str]:
    """An answer as it grows; the whole of one that has ended; that it is gone; or, for who follows many, what there is
    of it now, and to ask again later: browsers have six connections to a server for all tabs together."""
    if following[owner] >= _FOLLOWED and (live := site.answers.get(owner, message)) and live.state == "answering":
        yield _event(shown_live(live) | {"from": 0, "thought_from": 0})
        yield "event: later\ndata: {}\n\n"
        return
    following[owner] += 1
    try:
        async for event in _events(site, owner, session, message):
            yield event
    finally:
        following[owner] -= 1
        if not following[owner]:
            del following[owner]


async def _events(site: Site, owner: str, session: str, message: str) -> AsyncIterator[str]:
    while True:
        live, last = site.answers.get(owner, message), None
        if live is not None:
            async for told in _growth(live):
                if site.users.ended(session):
                    return
                if told is not None and told["state"] != "answering":
                    last = told
                else:
                    yield _event(told) if told else ": still here\n\n"
        saved = await asyncio.to_thread(site.store.message, owner, message)
        if saved is None:  # it may have ended because it was deleted
            yield "event: gone\ndata: {}\n\n"
            return
        if last or saved.state != "answering":
            yield _event(last or shown_saved(saved) | {"from": 0, "thought_from": 0})
            return
        await asyncio.sleep(_EVERY)  # it is about to begin


def _event(told: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(told, ensure_ascii=False)}\n\n"


async def _growth(answer: Answer) -> AsyncIterator[dict[str, Any] | None]:
    """What an answer has grown by, until it ends: blocks that have changed, from the first one that has; what was
    thought, from where it was. None, now and then, as long as there is nothing new."""
    seen, thought, wait, quiet = -1, 0, _EVERY, 0.0
    shown: list[str] = []
    while True:
        if answer.version == seen:
            await asyncio.sleep(wait)
            quiet += wait
            if quiet > 15:
                yield None
                quiet = 0.0
            continue
        seen, quiet, began = answer.version, 0.0, time.perf_counter()
        view = await asyncio.to_thread(shown_live, answer)
        new = view["blocks"]
        same = next((i for i, pair in enumerate(zip(shown, new, strict=False)) if pair[0] != pair[1]), None)
        begin = min(len(shown), len(new)) if same is None else same
        told = {"from": begin, "blocks": new[begin:], "state": view["state"], "info": view["info"]}
        told |= {"thought": view["thought"][thought:], "thought_from": thought, "thinking": view["thinking"]}
        shown, thought = new, len(view["thought"])
        ended = view["state"] != "answering"
        yield told | ({"text": view["text"]} if ended else {})
        if ended:
            return
        wait = max(_EVERY, 4 * (time.perf_counter() - began))  # a long answer is drawn less often
        await asyncio.sleep(wait)


def _files(app: FastAPI, site: Site) -> None:
    @app.get("/export.zip")
    def everything(request: Request) -> Response:
        owner = request.scope[OWNER]
        site.answers.settle(owner)
        file = tempfile.TemporaryFile(dir=site.library.uploads)  # gone when it is closed, whoever breaks off
        try:
            archive.write(file, site.store, site.library, owner)
        except (UserError, OSError) as error:
            file.close()
            told = str(error) if isinstance(error, UserError) else f"{error.strerror}; free space on the disk"
            return refused(507, f"no backup was made: {told}")
        file.seek(0)
        headers = {"Content-Disposition": "attachment", "Content-Length": str(_size(file))}  # the page names the day
        return StreamingResponse(_parts_of(file), media_type="application/zip", headers=headers)

    @app.get("/export/{conversation}.{kind}")
    def export(request: Request, conversation: str, kind: str) -> Response:
        site.answers.settle(request.scope[OWNER])
        try:
            found = site.store.get(request.scope[OWNER], conversation)
        except Missing as error:
            return refused(404, str(error))
        if kind not in ("md", "json"):
            return refused(404, "a conversation is exported as .md or .json")
        own = pictures.all_of(site.store, conversation)
        return _download(
            to_markdown(found, own) if kind == "md" else to_json([found], {found.id: own}), found.title, kind
        )

    @app.post("/import")
    async def take(request: Request) -> Any:
        owner, store, library = request.scope[OWNER], site.store, site.library
        return await _uploaded(
            request, library, "backup", lambda path: archive.take(path, store, library, owner), _BACKUP
        )

    @app.post("/files")
    async def add(request: Request, place: str, name: str) -> Any:
        """The body is the file."""
        owner, library = request.scope[OWNER], site.library

        def add_file(path: Path) -> str:
            return library.add(owner, place_of(site.store, owner, place), name, path)

        return await _uploaded(request, library, name, add_file, library.limits.file_bytes)

    @app.post("/pictures")
    async def add_picture(request: Request, conversation: str, name: str) -> Any:
        """For a question in the conversation, to a model that sees."""
        owner, library = request.scope[OWNER], site.library

        def add(path: Path) -> str:
            data = pictures.drawn(path, library.limits)
            return pictures.keep(site.store, owner, conversation, name_as_text(name), data)

        return await _uploaded(request, library, name, add, library.limits.file_bytes)

    @app.get("/pictures/{picture}")
    def picture(request: Request, picture: str) -> Response:
        data = pictures.data_of(site.store, request.scope[OWNER], picture)
        return refused(404, "there is nothing here") if data is None else Response(data, media_type="image/jpeg")


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _parts_of(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while part := file.read(1 << 16):
            yield part


async def _uploaded(request: Request, library: Library, name: str, take: Callable[[Path], Any], most: int) -> Any:
    """What becomes of the body of no more than so many bytes, as a file that `take` gets and may move away."""
    path = library.uploads / new_id()
    try:
        with path.open("xb") as file:
            whole = await _received(request, most, file.write)
        if not whole:
            return refused(413, f"{name[:200]} is larger than {most / 1e6:g} MB, which is the most; split it")
        return await asyncio.to_thread(_outcome, lambda: take(path))
    except OSError as error:
        return refused(507, f"{name[:200]} cannot be kept ({error.strerror}); free space on the disk")
    finally:
        path.unlink(missing_ok=True)


async def _received(request: Request, most: int, take: Callable[[bytes], object]) -> bool:
    """Whether the body had no more bytes than that. The rest is read and forgotten, as most browsers read no answer
    before all is sent; but one that says beforehand that it is far too large is not waited for."""
    size = 0
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > 4 * most:
        return False
    async for part in request.stream():
        size += len(part)
        if size <= most:
            take(part)
    return size <= most


def _download(text: str, name: str, kind: str) -> Response:
    safe = "".join(c if c.isalnum() or c in " -_" or category(c) in ("Mn", "Mc") else "_" for c in name)
    safe = safe[:60].strip() or "mengya"
    safe = f"_{safe}" if _DEVICE.fullmatch(safe) else safe
    kinds = {"md": "text/markdown", "json": "application/json"}
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(safe)}.{kind}"}
    return Response(text.encode(), media_type=f"{kinds[kind]}; charset=utf-8", headers=headers)
