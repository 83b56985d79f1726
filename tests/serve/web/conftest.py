import json
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("gradio", reason='the page needs pip install "mengya[ui]"')
pytest.importorskip("mdit_py_plugins", reason='the page needs pip install "mengya[ui]"')
pytest.importorskip("latex2mathml", reason='the page needs pip install "mengya[ui]"')
pytest.importorskip("httpx", reason="the tests ask with httpx")

import httpx

from mengya.rag.reading.limits import Limits
from mengya.serve.api.server import listen
from mengya.serve.web.answers import Answers
from mengya.serve.web.app import Site
from mengya.serve.web.library import Library
from mengya.serve.web.server import make_server
from mengya.serve.web.store import Store
from mengya.serve.web.users import Users

from ..api.scripted import Scripted
from .browsing import answer

if TYPE_CHECKING:
    from playwright import sync_api

SECRET = b"s" * 32
_WAIT = 60_000
"""Milliseconds for anything to appear in a browser: machines that test may be slow."""


class Page:
    """The application on a port of its own, and browsers without a screen."""

    def __init__(self, folder: Path, *backends: Any, **site: Any):
        self.store = Store(folder / "conversations.sqlite3")
        self.answers = Answers(self.store)
        limits = site.pop("limits", Limits(file_bytes=20_000_000))
        self.library = Library(folder / "documents", limits, **site.pop("library", {}))
        self.backend = backends[0]
        users = Users(SECRET, self.store, site.pop("keys", None))
        self.site = Site({b.name: b for b in backends}, self.store, self.answers, self.library, users, **site)
        self._bound: socket.socket = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._bound.getsockname()[1]}"
        self.server = make_server(self.site)
        self.thread = threading.Thread(target=self.server.run, args=([self._bound],), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.library.close()
        self.answers.close()
        self.store.close()
        self._bound.close()
        assert not self.thread.is_alive()

    def visitor(self) -> "Visitor":
        return Visitor(self.url)


class Visitor(httpx.Client):
    def __init__(self, url: str):
        super().__init__(base_url=url, timeout=60, trust_env=False)
        self.get("/")

    def ask(self, name: str, *values: Any) -> httpx.Response:
        return self.post(f"/gradio/gradio_api/run/{name}", json={"data": values})

    def call(self, name: str, *values: Any) -> Any:
        """The value of an endpoint; what is wrong, where something is."""
        answer = self.ask(name, *values)
        assert answer.status_code == 200, answer.text
        told = answer.json()["data"][0]
        return told["error"] if "error" in told else told["value"]

    def talk(self, text: str, conversation: str = "", parent: str = "", **settings: Any) -> dict[str, Any]:
        """A conversation, its last answer whole."""
        return self.whole(self.call("send", conversation, parent, text, settings))

    def whole(self, view: dict[str, Any]) -> dict[str, Any]:
        end = time.monotonic() + 30
        while (view := self.call("open", view["id"]))["messages"][-1]["state"] == "answering":
            assert time.monotonic() < end, "the answer did not end in time"
            time.sleep(0.01)
        return view

    def upload(self, place: str, name: str, content: bytes) -> httpx.Response:
        return self.post("/files", params={"place": place, "name": name}, content=content)

    def read(self, place: str) -> dict[str, Any]:
        """The files of a place, once nothing is being read."""
        end = time.monotonic() + 60
        while True:
            found = self.call("files", place)
            if all(job["state"] == "error" for job in found["jobs"]):
                return found
            assert time.monotonic() < end, "a file was not read in time"
            time.sleep(0.05)

    def events(self, message: str) -> Iterator[dict[str, Any]]:
        with self.stream("GET", f"/answers/{message}") as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """serve(answer or backends, **site) -> Page, stopped when the test ends."""
    running: list[Page] = []

    def start(*given: Any, **site: Any) -> Page:
        backends = [each if isinstance(each, Scripted) else Scripted(each) for each in given] or [Scripted()]
        running.append(Page(tmp_path / str(len(running)), *backends, **site))
        return running[-1]

    yield start
    for page in running:
        page.stop()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One that is shared: each visitor is an owner of their own."""
    shared = Page(tmp_path_factory.mktemp("page"), Scripted())
    yield shared
    shared.stop()


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    shared = Page(
        tmp_path_factory.mktemp("browser"),
        Scripted(answer),
        Scripted(answer, name="sprout-large"),
        seeing={"sprout-large"},
    )
    yield shared
    shared.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator["sync_api.Browser"]:
    driver = pytest.importorskip("playwright.sync_api", reason="driving a browser needs playwright: make test-browser")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("there is no chromium here: make test-browser")
    with driver.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])


@pytest.fixture
def browse(chromium, page_server) -> Iterator[Callable[..., "sync_api.Page"]]:
    """browse(**of the context) -> the page, for a new user; requests elsewhere and errors of scripts fail the test."""
    contexts, wrong = [], []

    def start(locale="zh-CN", width=1280, height=800, **more) -> "sync_api.Page":
        context = chromium.new_context(locale=locale, viewport={"width": width, "height": height}, **more)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(_WAIT)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on(
            "request", lambda request: None if request.url.startswith(page_server.url) else wrong.append(request.url)
        )
        tab.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        tab.goto(page_server.url)
        tab.wait_for_selector(".greeting")
        return tab

    yield start
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def pictures(request: pytest.FixtureRequest) -> Callable[[Any, str], None]:
    """pictures(tab, name): a picture of what a browser shows, where they are wanted."""
    folder = request.config.getoption("--screenshots")

    def take(tab: Any, name: str) -> None:
        if folder is not None:
            tab.wait_for_timeout(400)  # what moves has come to rest
            tab.screenshot(path=folder / f"{name}.png")

    return take


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core, which `make test-browser` puts beside the packages of Python."""
    path = Path(sys.prefix, "node_modules", "axe-core", "axe.min.js")
    if not path.is_file():
        pytest.skip("axe-core is not installed: make test-browser")
    return path.read_text(encoding="utf-8")
