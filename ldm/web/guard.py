"""What stands before every request: who may ask, from which page, how often, and how much they may send.

The server listens on 127.0.0.1 unless told otherwise, but every page that the user opens in a browser can send requests
there. So the host's name is checked (DNS rebinding), and what changes anything must not come from another page (CSRF).
"""

import asyncio
import hmac
from base64 import b64decode
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from time import monotonic
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ldm.web.answers import error_response
from ldm.web.caps import Caps
from ldm.web.listening import is_loopback

COOKIE = "ldm_token"
OPEN_PATHS = ("/login", "/static/page.css")
"""What can be seen without the token: the page that asks for it."""

_MOST_ADDRESSES = 10_000
_LONGEST_PATH = 1000
"""Python refuses to read a number with some thousands of digits, which would be an error of ours."""
_SAFE = ("GET", "HEAD", "OPTIONS")
SECURITY_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
FRAMED_HEADERS = {
    name: value.replace("frame-ancestors 'none'", "frame-ancestors *")
    for name, value in SECURITY_HEADERS.items()
    if name != "x-frame-options"
}
"""For a public server: a page that shows ours in a frame can do nothing that anyone could not do."""


class Refused(Exception):
    """A request that is answered with an error at once."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(message)


class RateLimit:
    """A bucket of tokens for each address: each request takes one, and they come back at a fixed rate."""

    def __init__(self, per_sec: float, burst: int) -> None:
        self.per_sec, self.burst = per_sec, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens left, when

    def left(self, address: str) -> float:
        """The requests that an address may send now."""
        tokens, when = self._buckets.get(address, (float(self.burst), monotonic()))
        return min(float(self.burst), tokens + (monotonic() - when) * self.per_sec)

    def take(self, address: str) -> bool:
        """Whether an address may send a request, which is then counted."""
        left = self.left(address)
        self._buckets[address] = (max(left - 1, 0.0), monotonic())
        self._buckets.move_to_end(address)
        if len(self._buckets) > _MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        return left >= 1


class Guard:
    """Checks requests before they reach the application.

    Args:
        token: that clients must have; empty for none, which is for 127.0.0.1 only, unless `public`.
        public: anyone may ask under any name, other pages may show ours in a frame, and a proxy may stand before us.
    """

    def __init__(self, app: ASGIApp, *, caps: Caps, token: str = "", public: bool = False) -> None:
        self.app = app
        self.caps = caps
        self.token = token
        self.public = public
        self._arriving_bytes = 0
        self._rate = RateLimit(caps.requests_per_sec, caps.burst)
        self._wrong_tokens = RateLimit(caps.wrong_tokens / 60, caps.wrong_tokens)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            return
        send = _with_headers(send, FRAMED_HEADERS if self.public else SECURITY_HEADERS)
        if self.public:
            scope = seen_by_proxy(scope)
        try:
            self._check(scope)
            body = await self._body(Headers(scope=scope), receive)
        except Refused as error:
            response = error_response(scope["path"], error.status, error.message, headers=error.headers)
            await response(scope, receive, send)
            return
        await self.app(scope, _after(body, receive), send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        address = scope["client"][0] if scope.get("client") else "local"
        if not self._rate.take(address):
            raise Refused(429, "too many requests from your address: wait a second", retry_after="1")
        if len(scope["path"]) > _LONGEST_PATH:
            raise Refused(414, "the path is too long: /openapi.json lists what there is")
        self._check_host(headers)
        if scope["method"] not in _SAFE:
            check_origin(headers)
        if self.token and scope["path"] not in OPEN_PATHS:
            self._check_token(scope, headers, address)

    def _check_host(self, headers: Headers) -> None:
        """Without a token, only this machine's own names are answered: a stranger's name may lead to 127.0.0.1, too.

        With one, a stranger's page lacks the token, whatever the name.
        """
        host = host_name(headers.get("host", ""))
        if not self.token and not self.public and not is_loopback(host):
            what = f"this server does not answer to the name {host!r:.80}"
            raise Refused(403, f"{what}: open it as 127.0.0.1, or start it with --token")

    def _check_token(self, scope: Scope, headers: Headers, address: str) -> None:
        given = list(given_tokens(headers))
        if any(same_text(each, self.token) for each in given):
            return
        if given and not self._wrong_tokens.take(address):
            raise Refused(429, "too many wrong tokens: wait a minute", retry_after="60")
        if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            raise Refused(303, "sign in first", location="/login")
        what = "the token is wrong" if given else "a token is needed"
        hint = "send it as Authorization: Bearer TOKEN, or as the password"
        raise Refused(401, f"{what}: {hint}", www_authenticate='Basic realm="ldm"')

    def may_try(self, address: str) -> bool:
        """Whether an address may try another token; it is counted."""
        return self._wrong_tokens.take(address)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        most = self.caps.request_bytes
        too_large = Refused(413, f"the request is larger than {most // 2**20} MiB: send smaller images")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or len(length) > 15:
            raise Refused(400, "content-length is not a number: leave it to your HTTP library")
        if int(length) > most:
            raise too_large
        try:
            async with asyncio.timeout(self.caps.body_sec):
                return b"".join([part async for part in self._parts(receive, too_large)])
        except TimeoutError:
            what = f"the request did not arrive within {self.caps.body_sec:g} seconds"
            raise Refused(
                408, f"{what}: send it faster, or with smaller images", connection="close"
            ) from None

    async def _parts(self, receive: Receive, too_large: Refused) -> AsyncIterator[bytes]:
        """The parts of a body, whose size is limited, as is that of all bodies that are arriving."""
        size, more = 0, True
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the request ended early: send it again")
                part = message.get("body", b"")
                size += len(part)
                self._arriving_bytes += len(part)
                if size > self.caps.request_bytes:
                    raise too_large
                if self._arriving_bytes > self.caps.arriving_bytes:
                    raise Refused(503, "the server is busy: send the request again later", retry_after="5")
                more = message.get("more_body", False)
                yield part
        finally:
            self._arriving_bytes -= size


def _after(body: bytes, receive: Receive) -> Receive:
    """What the application receives: the body at once, then what follows."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_next() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_next


def _with_headers(send: Send, added: Mapping[str, str]) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in added.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers


def seen_by_proxy(scope: Scope) -> Scope:
    """A request with the client's address and the scheme that a proxy in the same network names."""
    peer = str(scope["client"][0]) if scope.get("client") else "local"
    headers = Headers(scope=scope)
    named = headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    if not (_is_address(named) and _is_address(peer) and ip_address(peer).is_private):
        return scope
    scheme = headers.get("x-forwarded-proto", scope["scheme"])
    return {
        **scope,
        "client": (named, 0),
        "scheme": scheme if scheme in ("http", "https") else scope["scheme"],
    }


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        name, closing, _ = host.partition("]")
        return name + closing if closing else ""
    return host.partition(":")[0]


def check_origin(headers: Headers) -> None:
    """Refuse a request that a page of another origin sends.

    Programs send no Origin. Browsers send it with every request that is not a plain GET, and Sec-Fetch-Site besides.

    Raises:
        Refused: the origin is another one.
    """
    origin, host = headers.get("origin"), headers.get("host", "")
    is_own = origin is None or (origin != "null" and urlsplit_host(origin) == host.lower())
    if not is_own or headers.get("sec-fetch-site", "same-origin") in ("cross-site", "same-site"):
        raise Refused(403, "the request comes from another page: open this server's own page")


def urlsplit_host(url: str) -> str:
    """The host and port of a URL; empty if it is broken."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def given_tokens(headers: Headers) -> Iterable[str]:
    """Every token in a request: Bearer, the password of Basic, and the page's cookie."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield value.strip()
    if scheme.lower() == "basic":
        try:
            yield b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:  # not base64, or not UTF-8
            yield ""
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        cookie = None
    if cookie is not None:
        yield cookie.value


def same_text(one: str, other: str) -> bool:
    """Whether two texts are equal, in a time that does not tell how much of them is."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())
