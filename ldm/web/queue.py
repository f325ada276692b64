"""One queue for the page and for all HTTP clients: fair between clients, bounded, and every job can be cancelled.

A job is what one request asks for. It is made batch by batch, and after each batch it is the next client's turn, so
that a request for many images does not make the other clients wait for all of them.
"""

import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from time import time
from typing import Literal

from ldm.errors import UserError
from ldm.pipeline.batches import Batch, ImageRequest, plan_batches
from ldm.pipeline.record import ImageRecord
from ldm.pipeline.xy_grid import Axis
from ldm.web.caps import Caps

State = Literal["waiting", "running", "done", "failed", "cancelled"]
FINISHED: tuple[State, ...] = ("done", "failed", "cancelled")


class QueueFull(UserError):
    """The queue takes no more jobs now; the same request may succeed later."""


class NotFound(UserError):
    """There is no such job or image, or it has been dropped."""


@dataclass(frozen=True)
class ServedImage:
    """An image that was made: a PNG file with its record."""

    number: int
    seed: int
    file_name: str
    png: bytes
    record: ImageRecord


@dataclass(frozen=True)
class SheetLayout:
    """The axes of a grid over settings; see `ldm.pipeline.xy_grid`."""

    prompt: str
    x: Axis | None
    y: Axis | None


class Job:
    """The images that one request asks for, and how far they are.

    Attributes:
        id: a random text that nobody can guess: whoever knows it may see and cancel the job.
        client: whose turn it takes.
        held_bytes: of the decoded images that it was given.
        lora_weights: a weight for each LoRA of the server; None: as it was started.
        step, num_steps: sampling steps of the batch that is being made.
        previews: small PNG files of the unfinished images of that batch.
        images: those that are finished.
        warnings: what the pipeline warned of.
        error: why the job failed.
        ended: a future that is done when the job is finished.
    """

    def __init__(
        self,
        client: str,
        requests: Sequence[ImageRequest],
        batch_size: int,
        *,
        lora_weights: tuple[float, ...] | None = None,
        layout: SheetLayout | None = None,
    ) -> None:
        self.id = secrets.token_urlsafe(16)
        self.client = client
        self.lora_weights = lora_weights
        self.layout = layout
        self.requests: Sequence[ImageRequest] = requests
        self.num_images = len(requests)
        self.held_bytes = _held_bytes(requests[0])
        self.batches: list[Batch] = plan_batches(requests, batch_size)
        self.num_batches_done = 0
        self.created = time()
        self.state: State = "waiting"
        self.step = self.num_steps = 0
        self.previews: tuple[bytes, ...] = ()
        self.images: list[ServedImage] = []
        self.warnings: list[str] = []
        self.error: UserError | None = None
        self.stop_asked = False
        self.ended: Future[None] = Future()

    @property
    def is_finished(self) -> bool:
        return self.state in FINISHED

    @property
    def progress(self) -> float:
        """How much is done, from 0 to 1."""
        if self.is_finished:
            return len(self.images) / self.num_images
        done = self.batches[: self.num_batches_done]
        at_work = self.batches[self.num_batches_done : self.num_batches_done + 1]
        share = self.step / self.num_steps if self.num_steps else 0.0
        return (sum(map(len, done)) + share * sum(map(len, at_work))) / self.num_images

    @property
    def kept_bytes(self) -> int:
        """The finished images."""
        return sum(len(image.png) for image in self.images)

    def warn(self, message: str) -> None:
        """Note a warning, once."""
        if message not in self.warnings:
            self.warnings.append(message)

    def add(self, image: ServedImage) -> None:
        """Add a finished image, in the order of the request."""
        self.images = sorted([*self.images, image], key=lambda each: each.number)


def _held_bytes(request: ImageRequest) -> int:
    """The decoded images that a request was given; all images of a job are made from the same."""
    given = [*request.inputs.values(), *(control.image for control in request.controls)]
    return sum(3 * each.record.width * each.record.height for each in given)


class JobQueue:
    """The jobs of all clients; safe to use from several threads."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # clients in the order of their turns
        self._jobs: dict[str, Job] = {}  # by id, oldest first
        self._finished: deque[Job] = (
            deque()
        )  # those whose images are kept, in the order that they were finished
        self._held_bytes = self._kept_bytes = 0
        self._at_work: Job | None = None
        self._closed = False

    def submit(self, job: Job) -> None:
        """Put a job at the end of its client's line.

        Raises:
            QueueFull: too many jobs wait, of all clients or of this one, or their images take too much memory.
        """
        with self._changed:
            self._check_room(job)
            self._jobs[job.id] = job
            self._held_bytes += job.held_bytes
            self._waiting.setdefault(job.client, deque()).append(job)
            self._changed.notify_all()

    def _check_room(self, job: Job) -> None:
        num_waiting, own = self.num_waiting(), len(self._waiting.get(job.client, ()))
        if self._closed:
            raise QueueFull("the server is stopping", "start it again")
        if num_waiting >= self.caps.waiting:
            raise QueueFull(f"the queue is full with {num_waiting} requests", "try again later")
        if own >= self.caps.waiting_each:
            raise QueueFull(f"{own} of your requests are waiting", "wait until some are done, or cancel them")
        if self._held_bytes + job.held_bytes > self.caps.held_bytes:
            raise QueueFull("the images given with waiting requests take too much memory", "try again later")

    def next_batch(self) -> tuple[Job, Batch] | None:
        """Wait for work: the next batch of the client whose turn it is. None when the queue is closed."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            client, line = next(iter(self._waiting.items()))
            self._waiting.move_to_end(client)
            job = self._at_work = line[0]
            job.state, job.step, job.num_steps = "running", 0, 0
            return job, job.batches[job.num_batches_done]

    def batch_done(self, job: Job) -> None:
        """Note that the batch from `next_batch` is made."""
        with self._changed:
            job.num_batches_done += 1
            job.step, job.num_steps, job.previews = 0, 0, ()
            self._at_work = None
            if job.stop_asked:
                self._finish(job, "cancelled")
            elif job.num_batches_done == len(job.batches):
                self._finish(job, "done")

    def give_up(self, job: Job, error: UserError | None = None) -> None:
        """Note that the batch from `next_batch` is not made: it failed, or without an error, it was cancelled."""
        with self._changed:
            self._at_work = None
            job.error = error
            self._finish(job, "failed" if error else "cancelled")

    def cancel(self, job: Job) -> None:
        """Stop a job: at once if it waits, after the current sampling step if it is being made."""
        with self._changed:
            job.stop_asked = True
            if job is not self._at_work and not job.is_finished:
                self._finish(job, "cancelled")

    def _finish(self, job: Job, state: State) -> None:
        line = self._waiting.get(job.client)
        if line is not None and job in line:
            line.remove(job)
            if not line:
                del self._waiting[job.client]
        self._held_bytes -= job.held_bytes
        job.state, job.previews = state, ()
        job.requests, job.batches = (), []  # they hold the images given
        self._finished.append(job)
        self._kept_bytes += job.kept_bytes
        self._drop_old()
        job.ended.set_result(None)
        self._changed.notify_all()

    def _drop_old(self) -> None:
        """Drop the oldest finished jobs until what is kept is within the limits; the newest one stays."""
        while len(self._finished) > 1 and (
            len(self._finished) > self.caps.kept_jobs or self._kept_bytes > self.caps.kept_bytes
        ):
            oldest = self._finished.popleft()
            self._kept_bytes -= oldest.kept_bytes
            del self._jobs[oldest.id]

    def find(self, job_id: str) -> Job:
        """The job with this id.

        Raises:
            NotFound: there is none, or it is so old that it was dropped.
        """
        with self._changed:
            if job_id not in self._jobs:
                raise NotFound(
                    "there is no such job here", "its images may have been dropped: make them again"
                )
            return self._jobs[job_id]

    def find_all(self, ids: Sequence[str]) -> list[Job]:
        """The jobs with these ids, without those that are not there."""
        with self._changed:
            return [self._jobs[job_id] for job_id in ids if job_id in self._jobs]

    def jobs_of(self, client: str) -> list[Job]:
        """A client's jobs, the oldest first."""
        with self._changed:
            return [job for job in self._jobs.values() if job.client == client]

    def num_waiting(self) -> int:
        """Unfinished jobs, the one that is being made included."""
        with self._changed:
            return sum(map(len, self._waiting.values()))

    def place_of(self, job: Job) -> int:
        """How many other jobs get their turn before this one; 0 for one that runs or is finished."""
        with self._changed:
            line = self._waiting.get(job.client, deque())
            if job.state != "waiting" or job not in line:
                return 0
            own, clients = line.index(job), list(self._waiting)
            turn = clients.index(job.client)
            others = (
                min(len(self._waiting[other]), own + (number < turn))
                for number, other in enumerate(clients)
                if other != job.client
            )
            return own + sum(others)

    def close(self) -> None:
        """Cancel everything and let no more in."""
        with self._changed:
            self._closed = True
            for job in [job for line in self._waiting.values() for job in line]:
                self.cancel(job)
            self._changed.notify_all()
