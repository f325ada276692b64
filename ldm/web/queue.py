"""One queue for the page and for all HTTP clients: fair between clients, bounded, and every job can be cancelled.

A job is what one request asks for. It is made batch by batch, and after each batch it is the next client's turn, so
that a request for many images does not make the other clients wait for all of them. Several workers may take turns at
once, also with batches of the same job.
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
from ldm.io.image_metadata import ImageFormat
from ldm.pipeline.batches import Batch, ImageRequest, plan_batches
from ldm.pipeline.record import ImageRecord
from ldm.pipeline.xy_grid import Axis
from ldm.web.caps import Caps
from ldm.web.endings import InternalError

State = Literal["waiting", "running", "done", "failed", "cancelled"]
MOST_ENDS = 2
"""Processes that a job may end before it fails."""
FINISHED: tuple[State, ...] = ("done", "failed", "cancelled")


class QueueFull(UserError):
    """The queue takes no more jobs now; the same request may succeed later."""


class NotFound(UserError):
    """There is no such job or image, or it has been dropped."""


@dataclass(frozen=True)
class ServedImage:
    """An image that was made: the bytes of its file, with its record.

    Attributes:
        file_name: ends as the format says.
    """

    number: int
    seed: int
    file_name: str
    data: bytes
    record: ImageRecord
    file_format: ImageFormat = "png"


@dataclass(frozen=True)
class SheetLayout:
    """The axes of a grid over settings; see `ldm.pipeline.xy_grid`."""

    prompt: str
    x: Axis | None
    y: Axis | None


@dataclass(eq=False)
class Turn:
    """A batch that a worker is making, and how far it is.

    Attributes:
        is_first: whether it is the first batch of its job.
        step, num_steps: sampling steps.
        previews: small PNG files of the unfinished images.
    """

    job: "Job"
    batch: Batch
    is_first: bool
    step: int = 0
    num_steps: int = 0
    previews: tuple[bytes, ...] = ()

    @property
    def num_images_done(self) -> float:
        """How many of its images have been made, with fractions by steps."""
        return len(self.batch) * self.step / self.num_steps if self.num_steps else 0.0


class Job:
    """The images that one request asks for, and how far they are.

    Attributes:
        id: a random text that nobody can guess: whoever knows it may see and cancel the job.
        client: whose turn it takes.
        held_bytes: of the decoded images that it was given.
        model: its number; see `ServedModel`.
        lora_weights: a weight for each LoRA of the model; None: as it was given.
        file_format, quality: of the files, as of `ldm generate`.
        waiting: the batches that no worker has taken.
        at_work: those that are being made.
        has_no_first: whether no worker has its first batch, or has had it.
        num_made: images of the batches that were made.
        num_ends: how often a process ended that made a batch of it.
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
        model: int = 0,
        lora_weights: tuple[float, ...] | None = None,
        layout: SheetLayout | None = None,
        file_format: ImageFormat = "png",
        quality: int | None = None,
    ) -> None:
        self.id = secrets.token_urlsafe(16)
        self.client = client
        self.model = model
        self.lora_weights = lora_weights
        self.layout = layout
        self.file_format: ImageFormat = file_format
        self.quality = quality
        self.requests: Sequence[ImageRequest] = requests
        self.num_images = len(requests)
        self.held_bytes = _held_bytes(requests[0])
        self.waiting: deque[Batch] = deque(plan_batches(requests, batch_size))
        self.at_work: list[Turn] = []
        self.has_no_first = True
        self.num_made = 0
        self.num_ends = 0
        self.created = time()
        self.state: State = "waiting"
        self.images: list[ServedImage] = []
        self._adding = threading.Lock()
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
        return (self.num_made + sum(turn.num_images_done for turn in self.at_work)) / self.num_images

    @property
    def oldest_turn(self) -> Turn | None:
        """The batch that has been at work for the longest."""
        turns = self.at_work
        return turns[0] if turns else None

    def take(self) -> Turn:
        """The next batch, for a worker."""
        turn = Turn(self, self.waiting.popleft(), is_first=self.has_no_first)
        self.has_no_first = False
        self.at_work = [*self.at_work, turn]
        self.state = "running"
        return turn

    @property
    def kept_bytes(self) -> int:
        """The finished images."""
        return sum(len(image.data) for image in self.images)

    def warn(self, message: str) -> None:
        """Note a warning, once."""
        if message not in self.warnings:
            self.warnings.append(message)

    def add(self, image: ServedImage) -> None:
        """Add a finished image, in the order of the request; one that is there already is the same."""
        with self._adding:  # several workers may finish images of it at once
            if any(each.number == image.number for each in self.images):
                return
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

    def next_turn(self) -> Turn | None:
        """Wait for work: the next batch of the client whose turn it is. None when the queue is closed."""
        with self._changed:
            while not self._closed:
                if job := self._next_job():
                    return job.take()
                self._changed.wait()
            return None

    def _next_job(self) -> Job | None:
        """The next client's first job that has a batch left; the client goes to the end of the line."""
        for client, line in self._waiting.items():
            if job := next((each for each in line if each.waiting and not each.stop_asked), None):
                self._waiting.move_to_end(client)
                return job
        return None

    def made(self, turn: Turn) -> None:
        """Note that a batch is made."""
        with self._changed:
            turn.job.num_made += len(turn.batch)
            self._end(turn)

    def give_up(self, turn: Turn, error: UserError | None = None) -> None:
        """Note that a batch is not made: it failed, which ends its job, or without an error, it was cancelled."""
        with self._changed:
            turn.job.error = turn.job.error or error
            turn.job.stop_asked = True
            self._end(turn)

    def put_back(self, turn: Turn, how: str) -> bool:
        """Let a batch be made again whose process has ended, unless its job was cancelled or has done that before.

        Args:
            how: the process ended, for the error.

        Returns:
            Whether it is made again.
        """
        with self._changed:
            job = turn.job
            job.num_ends += 1
            if job.num_ends >= MOST_ENDS and not job.stop_asked:
                what = f"the process that made the images {how}, {job.num_ends} times"
                job.error = InternalError(what, "ask for a smaller image, or for fewer")
                job.stop_asked = True
            if again := not job.stop_asked:
                job.waiting.appendleft(turn.batch)
                job.has_no_first = job.has_no_first or turn.is_first
                self._changed.notify_all()
            self._end(turn)
            return again

    def _end(self, turn: Turn) -> None:
        job = turn.job
        job.at_work = [each for each in job.at_work if each is not turn]
        if job.at_work or (job.waiting and not job.stop_asked):
            return
        self._finish(job, "failed" if job.error else "cancelled" if job.stop_asked else "done")

    def cancel(self, job: Job) -> None:
        """Stop a job: at once if it waits, after the current sampling step if it is being made."""
        with self._changed:
            job.stop_asked = True
            if not job.at_work and not job.is_finished:
                self._finish(job, "cancelled")

    def _finish(self, job: Job, state: State) -> None:
        line = self._waiting.get(job.client)
        if line is not None and job in line:
            line.remove(job)
            if not line:
                del self._waiting[job.client]
        self._held_bytes -= job.held_bytes
        job.state = state
        job.requests = ()  # they and the batches hold the images given
        job.waiting.clear()
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
