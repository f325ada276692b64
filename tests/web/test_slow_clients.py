"""Connections that send or read too slowly, or are too many, are closed; the others are served."""

import http.client
import socket
import time
from collections.abc import Iterator

import pytest

from ldm.web.caps import Caps
from ldm.web.serving import PatientProtocol
from tests.support.tiny_web import listening, make_service


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server with little patience."""
    for name, value in {"head_sec": 0.3, "stall_sec": 0.3, "most_each": 5}.items():
        monkeypatch.setattr(PatientProtocol, name, value)
    with listening(make_service(Caps(burst=100_000))) as url:
        yield int(url.rpartition(":")[2])


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def closed_after(connection: socket.socket) -> float:
    """The seconds until the server closes a connection."""
    start = time.monotonic()
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - start


def healthy(port: int) -> bool:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        client.request("GET", "/health")
        return client.getresponse().status == 200
    finally:
        client.close()


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "])
def test_a_head_that_does_not_come_is_not_waited_for(port: int, sent: bytes) -> None:
    with connected(port) as slow:
        slow.sendall(sent)
        assert healthy(port)
        assert 0.1 < closed_after(slow) < 5


def test_an_address_has_few_connections(port: int) -> None:
    held = [connected(port) for _ in range(5)]
    try:
        time.sleep(0.05)
        with connected(port) as sixth:
            assert closed_after(sixth) < 0.25
    finally:
        for each in held:
            each.close()
    time.sleep(0.05)
    assert healthy(port)


def test_a_head_that_is_too_long_is_refused(port: int) -> None:
    with connected(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: " + b"a" * 70_000)
        answer = client.recv(100)
        assert b" 400 " in answer or b" 431 " in answer


def test_a_client_that_reads_nothing_is_not_waited_for(port: int) -> None:
    with connected(port) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = f"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        slow.sendall(request * 1000)
        assert healthy(port)
        with pytest.raises(ConnectionError):
            for _ in range(200):
                slow.sendall(b"G")
                time.sleep(0.05)


def test_broken_requests_are_answered(port: int) -> None:
    for sent in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ):
        with connected(port) as client:
            client.sendall(sent)
            assert client.recv(200).split()[1] in (b"400", b"403")
    assert healthy(port)
