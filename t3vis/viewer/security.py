"""Who may ask: a token in the first URL, a cookie after that; which hosts and pages; how much at once, how slowly.

The viewer reads a user's data and runs their model, so nothing is answered to a page of another origin, to a name
that was rebound to this machine, or to someone who does not know the token.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 1_000_000
"""Bytes that a request may carry."""
BODY_SECONDS = 10.0
"""How long a request may take to arrive."""
MAX_QUERY = 16_000
"""Bytes of a query string; 500 ids of seven digits fit."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors {ancestors}"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


def new_token() -> str:
    """A token that cannot be guessed."""
    return secrets.token_urlsafe(32)


def cookie_name(token: str) -> str:
    """Name of the cookie, another one for each server, since a browser sends a cookie to every port of a host."""
    return f"t3vis-{hashlib.blake2b(token.encode(), digest_size=6).hexdigest()}"


class Guard:
    """ASGI middleware that turns away what is not the user's own page, and bounds what it may send.

    Parameters
    ----------
    app
        What is guarded.
    token
        What the first request has to carry as ``?token=``, or any as ``Authorization: Bearer``.
    hosts
        Names, without ports, by which the server may be called.
    ancestors
        Origins that may show the viewer in a frame, such as a notebook's; by default none.
    """

    def __init__(self, app: ASGIApp, *, token: str, hosts: Iterable[str], ancestors: Iterable[str] = ()) -> None:
        self._app = app
        self._token = token
        self._cookie = cookie_name(token)
        self._hosts = frozenset(hosts)
        self._headers = dict(HEADERS)
        policy = HEADERS["content-security-policy"]
        self._headers["content-security-policy"] = policy.format(ancestors=" ".join(ancestors) or "'none'")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or turn it away."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refused(scope)
        if refused is not None:
            await refused(scope, receive, self._with_headers(send))
            return
        try:
            body = await asyncio.wait_for(_body(receive), BODY_SECONDS)
        except TimeoutError:
            await _error(408, f"the request took longer than {BODY_SECONDS:g} s to arrive; send it at once.")(
                scope, receive, self._with_headers(send)
            )
            return
        if body is None:
            return
        if len(body) > MAX_BODY:
            await _too_large()(scope, receive, self._with_headers(send))
            return
        await self._app(scope, _Replayed(body, receive), self._with_headers(send))

    def _refused(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if _name(host) not in self._hosts:
            return _error(421, f"this server is not {host!r}; call it {' or '.join(sorted(self._hosts))}.")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return _error(403, f"a page of {origin} may not ask this server; open the URL that t3vis printed.")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not self._is_entry(scope, headers):
            return _error(403, "a page of another site may not ask this server; open the URL that t3vis printed.")
        if len(scope["query_string"]) > MAX_QUERY:
            return _error(414, f"the query has more than {MAX_QUERY:,} bytes; ask for fewer ids at a time.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY:
            return _too_large()
        given = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("token")
        if given is not None and self._is_token(given):
            return self._entered(scope)
        if self._is_token(_cookie(headers, self._cookie)) or self._is_token(_bearer(headers)):
            return None
        return _error(401, "the token is missing or wrong; open the whole URL that t3vis printed.")

    def _is_entry(self, scope: Scope, headers: Headers) -> bool:
        """Whether a link was followed, which shows nothing to the page that has it."""
        return scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"

    def _entered(self, scope: Scope) -> Response:
        """The way to the same page without the token in its address."""
        query = [(name, value) for name, value in parse_qsl(scope["query_string"].decode("latin-1")) if name != "token"]
        # only this server's own page is a target: a path of two slashes would name another host
        path = "/" + scope["path"].lstrip("/\\")
        answer = RedirectResponse(path + (f"?{urlencode(query)}" if query else ""), 303)
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
        return answer

    def _is_token(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode(), self._token.encode())

    def _with_headers(self, send: Send) -> Send:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        return sent


class _Replayed:
    """A body that has been received, and after it whether the client is still there."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._message: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive

    async def __call__(self) -> Message:
        message, self._message = self._message, None
        return await self._receive() if message is None else message


async def _body(receive: Receive) -> bytes | None:
    """The body of a request, or what goes one byte beyond the limit; ``None`` where the client has gone."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BODY or not message.get("more_body", False):
            return bytes(body[: MAX_BODY + 1])


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _cookie(headers: Headers, name: str) -> str | None:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return None
    return None if found is None else found.value


def _bearer(headers: Headers) -> str | None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given if scheme.lower() == "bearer" else None


def _too_large() -> Response:
    return _error(413, f"the request is larger than {MAX_BODY:,} bytes; send less at a time.")


def _error(status: int, message: str) -> Response:
    content: dict[str, Any] = {"error": message}
    return JSONResponse(content, status)
