"""Making the images of a batch with the models of a server, as `ldm generate` does: they are the same bit for bit."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from torch import Tensor

from ldm.errors import warn
from ldm.generation.model_options import ModelOptions
from ldm.generation.safety_check import checked
from ldm.generation.signing import image_file
from ldm.io.image_metadata import ImageFormat
from ldm.io.image_writing import SUFFIXES
from ldm.pipeline.batches import Batch, ImageRequest
from ldm.pipeline.file_names import image_file_name
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.settings import MadeImage
from ldm.provenance.credentials import ImageSigner
from ldm.provenance.marks import EDITED, MADE
from ldm.provenance.safety import Safety, SafetyChecker
from ldm.types import Step
from ldm.web.caps import Caps
from ldm.web.latent_previews import preview_file, preview_images
from ldm.web.loaded_models import LoadedModel, LoadedModels, LoraWeights
from ldm.web.queue import ServedImage

PREVIEW_SEC = 0.3
"""The least time between two previews."""

OnProgress = Callable[[int, int, tuple[bytes, ...] | None], None]
"""Called with (steps done, steps in all, previews or None if they are as before); raises `Cancelled` to stop."""


@dataclass(frozen=True)
class BatchOrder:
    """A batch that is to be made.

    Attributes:
        images: all of its job, which decide what runs the denoiser.
        is_first: whether it is the first batch of the job: then all of its images are checked.
        model: the number of the model.
        lora_weights: None for those that the model was given with.
        file_format, quality: of the files, as of `ldm generate`.
    """

    batch: Batch
    images: Sequence[ImageRequest]
    is_first: bool = True
    model: int = 0
    lora_weights: LoraWeights | None = None
    file_format: ImageFormat = "png"
    quality: int | None = None


class Maker(Protocol):
    """What makes batches: `ImageMaker`, or a process that has one."""

    def make(self, order: BatchOrder, on_progress: OnProgress) -> Iterator[ServedImage]:
        """The images of a batch.

        Raises:
            UserError: the images cannot be made.
            Cancelled: `on_progress` raised it.
            ProcessEnded: the process that makes them has ended.
        """


@dataclass(frozen=True)
class MakerSetup:
    """What an `ImageMaker` is built from, in another process.

    Attributes:
        models: what each model is made with.
        most_models: in memory at once.
        safety: how images are checked; None if they are not.
    """

    models: tuple[ModelOptions, ...]
    most_models: int
    caps: Caps
    signer: ImageSigner | None = None
    safety: Safety | None = None

    def maker(self) -> "ImageMaker":
        """Raises UserError if the classifier cannot be used."""
        checker = self.safety.checker() if self.safety else None
        models = LoadedModels(self.models, self.most_models)
        batch_size = self.models[0].batch_size
        return ImageMaker(models, self.caps, batch_size=batch_size, signer=self.signer, checker=checker)


class ImageMaker:
    """Makes images in this process.

    Args:
        batch_size: images made at once.
        signer: signs the images; None if they are not signed.
        checker: checks the images; None if they are not checked.
    """

    def __init__(
        self,
        models: LoadedModels,
        caps: Caps,
        *,
        batch_size: int,
        signer: ImageSigner | None = None,
        checker: SafetyChecker | None = None,
    ) -> None:
        self.models = models
        self.caps = caps
        self.batch_size = batch_size
        self.signer = signer
        self.checker = checker
        self._next_preview = 0.0

    def make(self, order: BatchOrder, on_progress: OnProgress) -> Iterator[ServedImage]:
        """The images of a batch; see `Maker`."""
        model = self.models.get(order.model, order.lora_weights)
        if order.is_first:
            check_completed(model.pipeline, order.images, self.caps)
        model.choose_engine(order.images)
        kind = EDITED if order.batch[0].inputs else MADE

        def on_step(done: int, total: int, step: Step, latents: Tensor) -> None:
            on_progress(done, total, None)
            if self._previews_are_due(model):
                images = preview_images(latents, model.colors)
                on_progress(done, total, tuple(preview_file(each, kind) for each in images))

        batches = [order.batch]
        for made in model.pipeline.make_images(
            batches, batch_size=self.batch_size, halve=True, on_step=on_step
        ):
            if image := self._checked(made):
                yield served_image(image, self.signer, order.file_format, order.quality)

    def _checked(self, made: MadeImage) -> MadeImage | None:
        """The image with the classifier's note; None if it is not to be shown, which a warning says."""
        if self.checker is None:
            return made
        request = made.request
        image = checked(made, image_file_name(request.number, request.prompt, request.seed), self.checker)
        if image is None:
            warn(f"image {request.number} may be unsafe to show and was not kept")
        return image

    def _previews_are_due(self, model: LoadedModel) -> bool:
        refuses = self.checker is not None and self.checker.refuses  # a preview would show what it refuses
        if monotonic() < self._next_preview or model.pipeline.low_memory or refuses:
            return False
        self._next_preview = monotonic() + PREVIEW_SEC
        return True


def check_completed(pipeline: Pipeline, images: Batch, caps: Caps) -> None:
    """Check the settings of a job's images once the model's defaults and the images given have completed them.

    Raises:
        UserError: a setting does not fit the model, or is more than the server makes.
    """
    for record in pipeline.expected_records(images):
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
