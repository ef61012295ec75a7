"""The web server: its port, its connections and its end."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import socket
from http import HTTPStatus

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from finetune.errors import UserError
from finetune.serving import uploads

MAX_CONNECTIONS = 400
ARRIVAL_SECONDS = uploads.SECONDS + 2  # for the whole of a request; an upload that is too slow gets its answer before
KEEP_ALIVE_SECONDS = 5  # that a connection may be idle
END_SECONDS = 5  # that requests have to end in when the server is stopped
TRIED = 100  # ports after one that is in use


class Connection(H11Protocol):
    """A connection on which each request must arrive within a time limit, and of which there is a limited number.

    uvicorn limits the time between two requests only: one that sends a header line a minute would stay for ever. The
    attributes of its class are not documented; the tests of slow and of many connections notice if they change.
    """

    arrival: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self.refuse(503, "the server is busy. Try again in a second.", "Retry-After: 1\r\n")
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._watch()
        else:
            self._unwatch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, as JSON."""
        self.refuse(400, "this is no valid HTTP request.")

    def refuse(self, status: int, reason: str, more_headers: str = "") -> None:
        """Answer without the application, and close the connection."""
        body = json.dumps({"error": reason})
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n{more_headers}"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
        self.transport.close()

    def _watch(self) -> None:
        if self.arrival is None:
            self.arrival = self.loop.call_later(ARRIVAL_SECONDS, self._too_slow)

    def _unwatch(self) -> None:
        if self.arrival is not None:
            self.arrival.cancel()
            self.arrival = None

    def _too_slow(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.refuse(408, f"the request took longer than {ARRIVAL_SECONDS} s.")
        else:
            self.transport.abort()  # the application has answered


def bind(host: str, port: int) -> socket.socket:
    """A socket on that host and port; port 0 takes any. Raises `UserError`, which names the next port that is free."""
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port}: give a number from 0 to 65535.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM,
                                                      flags=socket.AI_PASSIVE)[0]  # fmt: skip
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"--host {host}: there is no such host. 127.0.0.1 is this machine alone.") from error
    for free in range(port, min(port + TRIED, 2**16)):
        try:
            bound = _bound(family, (address[0], free, *address[2:]))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"--host {host} --port {free} cannot be bound: {error.strerror}.") from error
            continue
        if free == port:
            return bound
        bound.close()
        raise UserError(f"port {port} is in use; {free} is free: --port {free}")
    raise UserError(f"port {port} is in use, and so are the next ones. Choose another with --port.")


def _bound(family: int, address: tuple) -> socket.socket:
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()  # of two servers that are started at once, one fails here
    except OSError:
        found.close()
        raise
    return found


def make(app: ASGIApp) -> uvicorn.Server:
    """A server for an application; nothing that visitors send is logged."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=END_SECONDS,
        )
    )


def run(app: ASGIApp, bound: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, and return."""
    server = make(app)

    def stop(*_: object) -> None:  # also called at the end: uvicorn raises the signal again
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    server.run(sockets=[bound])
