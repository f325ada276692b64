"""HTTP for the fake Hub: parse requests, send responses, and break connections on demand."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

CUT, LOST = "cut", "lost"
"""Faults without a status code: the connection ends halfway through the request, or instead of the response."""


@dataclass
class Fault:
    """A fault for the next `times` requests with this method and path."""

    method: str
    path: str
    what: int | str
    times: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    told: str = "it does not work today"


class Request(NamedTuple):
    """A request. The body is parsed JSON, a list of parsed JSON lines, or bytes."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: Any


class Answer(NamedTuple):
    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = {}


class Handler(BaseHTTPRequestHandler):
    """The HTTP handler, which also injects the faults."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub = self.server.hub  # type: ignore[attr-defined]
        url = urlsplit(self.path)
        fault = hub.take_fault(self.command, url.path)
        if fault and fault.what == CUT:
            return self._hang_up(read_bytes=int(self.headers.get("Content-Length", 4096)) // 2)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        request = Request(self.command, url.path, query, self.headers, self._body())  # type: ignore[arg-type]
        if fault and isinstance(fault.what, int):
            return self._send(Answer(fault.what, {"error": fault.told}, fault.headers))
        output = hub.output(request)
        if fault and fault.what == LOST:
            return self._hang_up()
        self._send(output)

    do_HEAD = do_POST = do_PUT = do_GET

    def _body(self) -> Any:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b"".join(iter(self._chunk, b""))
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = self.headers.get("Content-Type", "")
        if "ndjson" in kind:
            return [json.loads(line) for line in data.splitlines()]
        return json.loads(data) if "json" in kind else data

    def _chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def _hang_up(self, read_bytes: int = 0) -> None:
        self.rfile.read(read_bytes)
        self.close_connection = True

    def _send(self, output: Answer) -> None:
        is_json = not isinstance(output.body, bytes)
        data = json.dumps(output.body).encode() if is_json else output.body
        self.send_response(output.status)
        headers = {"Content-Type": "application/json"} if is_json else {}
        for key, value in {**headers, **output.headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Log nothing."""
