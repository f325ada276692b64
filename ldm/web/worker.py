"""The thread that makes the images of the queue with the loaded model."""

import sys
import threading
import traceback
from collections.abc import Callable
from time import monotonic

from torch import Tensor

from ldm.errors import UserError, warn
from ldm.generation.safety_check import checked
from ldm.generation.signing import image_file
from ldm.io.image_metadata import ImageFormat
from ldm.io.image_writing import SUFFIXES
from ldm.io.memory import memory_fault
from ldm.io.messages import warnings_of_thread
from ldm.models.devices import free_cached_memory
from ldm.pipeline.file_names import image_file_name
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.settings import MadeImage
from ldm.provenance.credentials import ImageSigner
from ldm.provenance.marks import EDITED, MADE
from ldm.provenance.safety import SafetyChecker
from ldm.types import Step
from ldm.web.caps import Caps
from ldm.web.latent_previews import fit_colors, preview_file, preview_images
from ldm.web.queue import Job, JobQueue, ServedImage, Turn

PREVIEW_SEC = 0.3
"""The least time between two previews."""

LoraWeights = tuple[float, ...]
"""A weight for each LoRA of the server, in its order."""


class Cancelled(Exception):
    """The job that is being made was cancelled."""


class InternalError(UserError):
    """A fault of the program, not of the request."""


class Worker(threading.Thread):
    """Takes batches from the queue and makes them as `ldm generate` does, so the images are the same bit for bit.

    Attributes:
        load: loads the model with its LoRAs at other weights.
        signer: signs the images; None if they are not signed.
        checker: checks the images; None if they are not checked.
    """

    def __init__(
        self,
        queue: JobQueue,
        pipeline: Pipeline,
        lora_weights: LoraWeights,
        load: Callable[[LoraWeights], Pipeline],
        *,
        batch_size: int,
        signer: ImageSigner | None = None,
        checker: SafetyChecker | None = None,
    ) -> None:
        super().__init__(name="worker", daemon=True)
        self.queue = queue
        self.load = load
        self.batch_size = batch_size
        self.signer = signer
        self.checker = checker
        self._given_weights = lora_weights
        self._weights = lora_weights
        self._pipeline: Pipeline | None = pipeline
        self._colors: Tensor | None = None
        self._next_preview = 0.0

    def run(self) -> None:
        """Make batches until the queue is closed. An error ends its job only."""
        while (turn := self.queue.next_turn()) is not None:
            try:
                with warnings_of_thread(turn.job.warn):
                    self._make(turn)
            except Cancelled:
                self.queue.give_up(turn)
            except UserError as error:
                self.queue.give_up(turn, error)
            except Exception as error:
                self.queue.give_up(turn, _fault(error))
            else:
                self.queue.made(turn)

    def _make(self, turn: Turn) -> None:
        job = turn.job
        pipeline = self._pipeline_with(job.lora_weights or self._given_weights)
        if turn.is_first:
            check_completed(pipeline, job, self.queue.caps)

        def on_step(done: int, total: int, step: Step, latents: Tensor) -> None:
            self._report(turn, pipeline, done, total, latents)

        batches = [turn.batch]
        for made in pipeline.make_images(batches, batch_size=self.batch_size, halve=True, on_step=on_step):
            if image := self._checked(made):
                job.add(served_image(image, self.signer, job.file_format, job.quality))

    def _checked(self, made: MadeImage) -> MadeImage | None:
        """The image with the classifier's note; None if it is not to be shown, which a warning says."""
        if self.checker is None:
            return made
        request = made.request
        image = checked(made, image_file_name(request.number, request.prompt, request.seed), self.checker)
        if image is None:
            warn(f"image {request.number} may be unsafe to show and was not kept")
        return image

    def _report(self, turn: Turn, pipeline: Pipeline, done: int, total: int, latents: Tensor) -> None:
        if turn.job.stop_asked:
            raise Cancelled
        turn.step, turn.num_steps = done, total
        refuses = self.checker is not None and self.checker.refuses  # a preview would show what it refuses
        if monotonic() < self._next_preview or pipeline.low_memory or refuses:
            return
        if self._colors is None:
            autoencoder = pipeline.autoencoder
            self._colors = fit_colors(autoencoder.decode, autoencoder.num_channels, pipeline.device)
        kind = EDITED if turn.batch[0].inputs else MADE
        turn.previews = tuple(preview_file(each, kind) for each in preview_images(latents, self._colors))
        self._next_preview = monotonic() + PREVIEW_SEC

    def _pipeline_with(self, weights: LoraWeights) -> Pipeline:
        """The model with its LoRAs at these weights; it is loaded again if it has others."""
        if self._pipeline is None or weights != self._weights:
            self._pipeline = None  # the memory is needed for the next one
            free_cached_memory()
            self._pipeline, self._weights = self.load(weights), weights
        return self._pipeline


def check_completed(pipeline: Pipeline, job: Job, caps: Caps) -> None:
    """Check the settings of a job's images once the model's defaults and the images given have completed them.

    Raises:
        UserError: a setting does not fit the model, or is more than the server makes.
    """
    for record in pipeline.expected_records(job.requests):
        caps.check_settings(record.settings)


def served_image(
    made: MadeImage,
    signer: ImageSigner | None = None,
    file_format: ImageFormat = "png",
    quality: int | None = None,
) -> ServedImage:
    """An image as the file that `ldm generate` would write, signed in the format that was asked for."""
    request = made.request
    name = image_file_name(request.number, request.prompt, request.seed, SUFFIXES[file_format])
    data = image_file(made, signer, file_format, quality)
    return ServedImage(request.number, request.seed, name, data, made.record, file_format)


def _fault(error: Exception) -> UserError:
    """The error to answer with; one that is not about memory is printed for whoever runs the server."""
    if shortage := memory_fault(error):
        return InternalError(shortage.what, "ask for a smaller image, or for fewer")
    traceback.print_exception(error, file=sys.stderr)
    return InternalError(
        f"the server made a mistake ({type(error).__name__})", "its terminal shows more; please report it"
    )
