"""Serves the page until it is told to stop."""

import socket

import uvicorn

from mengya.serve.api.server import Server
from mengya.serve.web.app import Site, create_app


def make_server(site: Site) -> Server:
    config = uvicorn.Config(
        create_app(site),
        loop="asyncio",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,  # addresses hold ids of conversations
        server_header=False,
        timeout_keep_alive=75,  # longer than browsers keep a connection, which so never use one that closes
        timeout_graceful_shutdown=2,  # a page that follows an answer finds it in the store later
    )
    return Server(config)


def serve(site: Site, bound: socket.socket) -> None:
    """Until SIGINT or SIGTERM."""
    make_server(site).run([bound])
