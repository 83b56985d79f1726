"""The server below the application: a port, connections that keep others waiting, and how it stops."""

import asyncio
import contextlib
import errno
import gc
import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mengya.errors import UserError
from mengya.serve.api.app import create_app
from mengya.serve.api.errors import ApiError, to_json
from mengya.serve.api.settings import Limits, Settings

_KEEP_ALIVE = 75
"""Seconds that an unused connection stays open: longer than clients keep theirs, which so never use one that closes."""
_REMEDIES = {
    errno.EADDRINUSE: "another program listens there; stop it, or choose another --port",
    errno.EACCES: "it takes more rights; choose a --port of 1024 or more",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose another --host",
}


def listen(host: str, port: int) -> socket.socket:
    """A socket at that address, which takes connections once it is served. UserError if there is none to be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)  # asyncio sends without delay only where the protocol is told
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"host={host} is not an address of this machine ({error}); choose another --host") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)  # now, as a second program may bind the same port until somebody listens
    except (OSError, OverflowError) as error:
        bound.close()
        remedy = _REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None
        raise UserError(f"port={port} of {host} cannot be used: {remedy or error}") from error
    return bound


class Server(uvicorn.Server):
    """Stops at SIGINT or SIGTERM: takes no more connections, lets open answers end, returns."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does it, but the signal is not raised again: what is behind `run` is still to be closed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def make_server(settings: Settings) -> Server:
    limits = settings.limits
    config = uvicorn.Config(
        create_app(settings),
        http=type("Protocol", (_Protocol,), {"limits": limits}),  # uvicorn makes one for each connection
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,  # it has the addresses that are asked for; the gate writes routes
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(limits.drain_seconds)),
    )
    return Server(config)


def serve(settings: Settings, bound: socket.socket) -> None:
    """Until SIGINT or SIGTERM. A line for each request goes to standard error."""
    log = logging.getLogger("mengya.serve")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    gc.collect()
    gc.freeze()  # models and libraries stay to the end: looking through them again and again stops all answers
    make_server(settings).run([bound])


class _Protocol(H11Protocol):
    """Drops connections whose request does not come, or whose client does not read; tells errors in our shape."""

    limits: Limits
    _waiting: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting = self.loop.call_later(self.limits.head_seconds, transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        incomplete = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if not incomplete and self._waiting:
            self._waiting.cancel()
            self._waiting = None
        elif incomplete and not self._waiting:
            self._waiting = self.loop.call_later(self.limits.head_seconds, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck:
            self._stuck.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._waiting, self._stuck):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        body = to_json(ApiError(400, msg, code="invalid_http").body)
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
