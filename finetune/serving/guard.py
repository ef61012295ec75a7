"""Which hosts a request may name, the headers of each answer, and its total time."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::", "")
SECONDS = 60  # for a whole request and its answer
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Guard:
    """Middleware that refuses requests for other hosts, and those that another host's page sends.

    A page that a visitor opens can send requests to this machine. Browsers name the page's host in `Origin`; a name
    that was made to point at this machine (DNS rebinding) is in `Host`.
    """

    def __init__(self, app: ASGIApp, host: str, more_hosts: Iterable[str] = ()) -> None:
        self.app = app
        self.hosts = {name.lower() for name in (*LOOPBACK, host, *more_hosts)}
        self.by_address = host in EVERYWHERE
        """Whether any IP address is a valid host: an address cannot be made to point elsewhere."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if problem := self.problem(Headers(scope=scope)):
            await JSONResponse({"error": problem}, 403)(scope, receive, with_headers)
            return
        try:
            await asyncio.wait_for(self.app(scope, receive, with_headers), SECONDS)
        except asyncio.TimeoutError:
            if not started:
                answer = {"error": "the answer took too long. Try again later."}
                await JSONResponse(answer, 503, {"Retry-After": "10"})(scope, receive, with_headers)

    def problem(self, headers: Headers) -> str:
        """Why a request is refused; empty where it is not."""
        named = headers.getlist("host")
        host = _name(f"//{named[0]}") if len(named) == 1 else None
        if not host or not (host in self.hosts or (self.by_address and _is_address(host))):
            return "this server does not serve that host. Its owner can add a name with --allow-host."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != named[0].lower():
            return "requests from other sites' pages are refused."
        return ""


def _name(address: str) -> str | None:
    try:
        return (urlsplit(address).hostname or "").rstrip(".")
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
