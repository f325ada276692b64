"""The HTTP server: connections that are too slow or too many, and stopping."""

import asyncio
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from ldm.web.guard import Guard
from ldm.web.queue import JobQueue

HEAD_SEC = 10.0
"""In which the head of a request must have arrived."""
STALL_SEC = 60.0
"""How long a client may read nothing of an answer."""
CONNECTIONS, CONNECTIONS_EACH = 400, 60
"""The most open connections, of all clients and of one address."""
GRACE_SEC = 3
LARGEST_HEAD_BYTES = 32 * 2**10


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP protocol with limits on time and connections, for which uvicorn has no settings.

    uvicorn's documentation names the class as `--http h11`; tests/web/test_slow_clients.py notices if it changes.
    """

    head_sec, stall_sec, most_each = HEAD_SEC, STALL_SEC, CONNECTIONS_EACH
    _stalled: asyncio.TimerHandle | None = None
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Close the connection at once if its address has too many; or later, if no request comes."""
        super().connection_made(transport)
        if self._num_of_address() > self.most_each:
            transport.abort()
            return
        self._late = self.loop.call_later(self.head_sec, self._close_if_late)

    def _num_of_address(self) -> int:
        address = self.client[0] if self.client else ""
        clients = [getattr(each, "client", None) for each in self.connections]
        return sum(1 for client in clients if client and client[0] == address)

    def _close_if_late(self, done: RequestResponseCycle | None = None) -> None:
        """Close the connection if no request has come since the one that is done."""
        if self.cycle is done:
            self.transport.abort()

    def on_response_complete(self) -> None:
        """Expect the next request of the connection within the same time; uvicorn closes it if nothing at all comes."""
        done = self.cycle
        super().on_response_complete()
        sec = self.timeout_keep_alive + self.head_sec
        self._late = self.loop.call_later(sec, self._close_if_late, done)

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.stall_sec, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        for timer in (self._stalled, self._late):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """uvicorn's server; a signal cancels the jobs first, so that requests that wait for them end."""

    queue: JobQueue

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Answer a signal."""
        self.queue.close()
        super().handle_exit(sig, frame)


def make_server(application: Guard, queue: JobQueue) -> Server:
    """A server for an application; `run(sockets=[...])` runs it until a signal comes."""
    config = uvicorn.Config(
        application,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=GRACE_SEC,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=LARGEST_HEAD_BYTES,
    )
    server = Server(config)
    server.queue = queue
    return server
