"""A tiny model behind the web application: in this process, with a queue and a worker, or on a socket."""

import asyncio
import io
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.generation.model_options import ModelOptions
from ldm.models.generation_settings import GenerationSettings
from ldm.provenance.credentials import ImageSigner
from ldm.provenance.safety import SafetyChecker
from ldm.web.application import make_application
from ldm.web.caps import Caps
from ldm.web.image_maker import ImageMaker, MakerSetup
from ldm.web.listening import listen
from ldm.web.loaded_models import LoadedModels
from ldm.web.model_process import ModelProcess
from ldm.web.queue import JobQueue
from ldm.web.runs_api import Runs
from ldm.web.served_model import ServedModel
from ldm.web.service import Service
from ldm.web.serving import make_server
from ldm.web.worker import Worker

HOST = {"host": "127.0.0.1:7860"}
MODEL = ServedModel("tiny", "0" * 64, "text-to-image", GenerationSettings(height=16, width=16))
"""What is told of a model where none is loaded."""


def make_service(caps: Caps | None = None, model: ServedModel = MODEL) -> Service:
    """A service without a worker: jobs wait."""
    return Service([model], JobQueue(caps or Caps()), batch_size=8)


@dataclass(frozen=True)
class Answer:
    """What the application answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The message of an error, of either shape."""
        found = self.json
        return str(found["detail"] if "detail" in found else found["error"]["message"])


def call(
    application: Any,
    path: str,
    *,
    body: Any = None,
    method: str = "",
    headers: Mapping[str, str] = {},
    address: str = "127.0.0.1",
    keep_sending: bool = False,
) -> Answer:
    """Send one request to an ASGI application in this process.

    Args:
        body: bytes, or something for JSON.
        keep_sending: the body never ends.
    """
    return asyncio.run(_call(application, path, body, method, {**HOST, **headers}, address, keep_sending))


async def _call(
    application: Any,
    path: str,
    body: Any,
    method: str,
    headers: Mapping[str, str],
    address: str,
    keep_sending: bool,
) -> Answer:
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method or ("GET" if body is None else "POST"),
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "client": (address, 5000),
        "server": ("127.0.0.1", 7860),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    parts = [{"type": "http.request", "body": content, "more_body": keep_sending}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop()
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await application(scope, receive, send)
    said = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], said, b"".join(each.get("body", b"") for each in sent[1:]))


@contextmanager
def working(
    folder: Path,
    *loras: str,
    caps: Caps | None = None,
    signer: ImageSigner | None = None,
    num_workers: int = 1,
    checker: SafetyChecker | None = None,
    more: Sequence[Path] = (),
    most_models: int = 2,
) -> Iterator[Service]:
    """A service whose workers make images with a saved model, or with `more` of them, in this process."""

    options = [ModelOptions(str(folder), loras=loras), *(ModelOptions(str(each)) for each in more)]
    queue = JobQueue(caps or Caps())
    held = [LoadedModels(options, most_models) for _ in range(num_workers)]
    served = held[0].describe()
    makers = [ImageMaker(each, queue.caps, batch_size=8, signer=signer, checker=checker) for each in held]
    workers = [Worker(queue, maker) for maker in makers]
    service = Service(served, queue, batch_size=8, signer=signer)
    for worker in workers:
        worker.start()
    try:
        yield service
    finally:
        queue.close()
        for worker in workers:
            worker.join(60)
        service.uploads.close()


@contextmanager
def working_in_a_process(folder: Path, *loras: str) -> Iterator[tuple[Service, ModelProcess]]:
    """A service with the models in a process of their own, as `ldm serve` has it."""
    queue, process = JobQueue(Caps()), ModelProcess()
    try:
        served = process.load(MakerSetup((ModelOptions(str(folder), loras=loras),), 2, queue.caps))
        service, worker = Service(served, queue, batch_size=8), Worker(queue, process)
        worker.start()
        yield service, process
        queue.close()
        worker.join(60)
        service.uploads.close()
    finally:
        process.close()


@contextmanager
def listening(service: Service, *, runs: Runs | None = None, token: str = "") -> Iterator[str]:
    """A service on a socket of this machine; yields its URL."""
    server = make_server(make_application(service, runs=runs, token=token), service.queue)
    with listen("127.0.0.1", 0) as opened:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{opened.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


def png_of(image: Image.Image) -> bytes:
    """An image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
