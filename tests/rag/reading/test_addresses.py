"""Web addresses, against a server on this machine that stands for the open network."""

import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mengya.errors import UserError
from mengya.rag.reading.addresses import is_public, read_address
from mengya.rag.reading.limits import Limits

pytest.importorskip("httpx")
PAGE = "<html><head><title>竹子</title></head><body><p>竹子可以造纸。</p></body></html>"


class Server(BaseHTTPRequestHandler):
    asked: list[tuple[str, str]]

    def do_GET(self):
        self.asked.append((self.headers["Host"], self.path))
        status, headers, body = {
            "/page": (200, {"Content-Type": "text/html"}, PAGE.encode()),
            "/latin": (200, {"Content-Type": "text/html; charset=iso-8859-1"}, b"<html><p>caf\xe9 cr\xe8me</p></html>"),
            "/packed": (200, {"Content-Encoding": "gzip"}, gzip.compress(PAGE.encode())),
            "/bomb": (200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(64 << 20))),
            "/moved": (302, {"Location": "/page"}, b""),
            "/inside": (302, {"Location": "http://inside.example/secret"}, b""),
            "/file": (302, {"Location": "file:///etc/passwd"}, b""),
            "/round": (302, {"Location": "/round"}, b""),
            "/large": (200, {}, b"x" * 5000),
            "/slow": (200, {}, b"slow"),
        }.get(self.path, (404, {}, b"no"))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.path == "/slow":
            time.sleep(5)
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server() -> Iterator[tuple[int, list]]:
    """(port, what was asked)."""
    asked: list[tuple[str, str]] = []
    handler = type("Handler", (Server,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=[0.02], daemon=True).start()
        yield running.server_port, asked
        running.shutdown()


NAMES = {"open.example": ["127.0.0.1"], "inside.example": ["10.0.0.7"], "both.example": ["127.0.0.1", "10.0.0.7"]}


def read(url: str, **limits):
    """As if 127.0.0.1 were an address of the open network."""
    return read_address(
        url,
        Limits(**limits),
        resolve=lambda host, port: NAMES[host],
        allowed=lambda address: address == "127.0.0.1" or is_public(address),
    )


def test_a_page_is_read_from_the_address_that_was_checked(server):
    port, asked = server
    document = read(f"http://open.example:{port}/moved")
    assert [b.text for b in document.blocks] == ["竹子", "竹子可以造纸。"] and document.kind == "html"
    assert document.name == f"http://open.example:{port}/moved"
    assert asked == [(f"open.example:{port}", "/moved"), (f"open.example:{port}", "/page")]


@pytest.mark.parametrize("path, text", [("/latin", "café crème"), ("/packed", "竹子可以造纸。")])
def test_encodings_that_only_the_head_names(server, path, text):
    assert read(f"http://open.example:{server[0]}{path}").blocks[-1].text == text


@pytest.mark.parametrize(
    "path, limits, message",
    [
        ("/inside", {}, "inside this machine or its network"),
        ("/file", {}, "only addresses that begin with http"),
        ("/round", {}, "more than 5 redirects"),
        ("/missing", {}, "answers 404"),
        ("/large", {"file_bytes": 1000}, "larger than"),
        ("/bomb", {"file_bytes": 1 << 20}, "larger than"),
        ("/slow", {"address_seconds": 0.5}, "longer than 0.5 seconds|does not answer"),
    ],
)
def test_what_is_refused(server, path, limits, message):
    port, asked = server
    with pytest.raises(UserError, match=message):
        read(f"http://open.example:{port}{path}", **limits)
    assert {host for host, _ in asked} == {f"open.example:{port}"}


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://127.0.0.1/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://0.0.0.0/",
            "http://169.254.169.254/",
        ),
        *("http://2130706433/", "http://0x7f.1/", "http://0177.0.0.1/", "http://127.1/", "http://１２７.0.0.1/"),
        *(
            "http://localhost/",
            "file:///etc/passwd",
            "ftp://example.com/",
            "http://user@example.com/",
            "example.com",
            "",
        ),
        *(
            "http://[64:ff9b::7f00:1]/",
            "http://[2002:7f00:1::]/",
            "http://[fe80::1]/",
            "http://[::127.0.0.1]/",
            "http://[",
        ),
    ],
)
def test_addresses_inside_are_refused(url):
    def connect(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    with pytest.raises(UserError, match=r"not read|are read|is a number|no web address"):
        read_address(url, resolve=connect)


def test_one_address_inside_is_enough(server):
    with pytest.raises(UserError, match="inside"):
        read(f"http://both.example:{server[0]}/page")
    assert server[1] == []


def test_public_addresses():
    assert all(map(is_public, ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1"]))
    inside = ["10.1.1.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.1.1", "224.0.0.1", "255.255.255.255"]
    assert not any(map(is_public, [*inside, "240.0.0.1", "fc00::1", "ff02::1", "::", "fec0::1", "::ffff:10.0.0.1"]))
