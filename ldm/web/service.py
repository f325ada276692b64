"""What the page and the HTTP interfaces share: from a client's request to a job in the queue."""

import asyncio
import io
import secrets
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from starlette.requests import Request

from ldm.errors import UserError
from ldm.generation.prompts import check_installed
from ldm.generation.signing import sheet_file, signed_sheet
from ldm.io.image_metadata import ImageFormat
from ldm.io.images import image_grid
from ldm.models.control.hints import REFERENCE
from ldm.models.generation_settings import GenerationSettings
from ldm.models.setting_checks import check_text
from ldm.pipeline.batches import Prompt, list_images
from ldm.pipeline.settings import with_inputs
from ldm.pipeline.xy_grid import Axis, grid_sheet, over_grid, parse_axis
from ldm.provenance.credentials import ImageSigner
from ldm.web.caps import Caps
from ldm.web.listening import is_loopback
from ldm.web.queue import Job, JobQueue, NotFound, ServedImage, SheetLayout
from ldm.web.served_model import ServedModel
from ldm.web.uploads import UploadReader

RANDOM_SEEDS = 2**32
MOST_CHOICES = 1000
"""The clients whose choice of a model is remembered."""


@dataclass(frozen=True)
class Asked:
    """What a client asks for, decoded but not yet checked against the model.

    Attributes:
        image, mask: to start from; the mask is grey, white where the image may change.
        controls: control images by kind, each with its scale; `reference` is an image that serves as a prompt.
        lora_weights: None for those of the server.
        grid_x, grid_y: as of `ldm.pipeline.xy_grid.parse_axis`; empty for none.
        model: None for the first of the server.
        file_format, quality: of the files, as of `ldm generate`.
    """

    prompt: str
    settings: GenerationSettings
    image: Image.Image | None = None
    mask: Image.Image | None = None
    controls: Mapping[str, tuple[Image.Image, float]] = field(default_factory=dict)
    lora_weights: tuple[float, ...] | None = None
    grid_x: str = ""
    grid_y: str = ""
    model: ServedModel | None = None
    file_format: ImageFormat = "png"
    quality: int | None = None


class Service:
    """The models, their queue, and what decodes uploads.

    Attributes:
        models: by the names that clients call them; the first one is used where none is named.
        kind: the settings of an image.
        batch_size: images made at once, as of `ldm generate --batch-size`.
        signer: signs the sheets of images; None if nothing is signed.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        queue: JobQueue,
        *,
        batch_size: int,
        signer: ImageSigner | None = None,
        kind: type[GenerationSettings] = GenerationSettings,
    ) -> None:
        self.models = {model.name: model for model in models}
        self._chosen: OrderedDict[str, ServedModel] = OrderedDict()
        self.queue = queue
        self.batch_size = batch_size
        self.signer = signer
        self.kind = kind
        self.uploads = UploadReader(queue.caps.upload_pixels)

    @property
    def caps(self) -> Caps:
        return self.queue.caps

    @property
    def model(self) -> ServedModel:
        """The model that is used where none is named."""
        return next(iter(self.models.values()))

    def find_model(self, name: Any) -> ServedModel:
        """The model that a client names, by its name or its title. Nothing is looked up on a disk.

        Raises:
            NotFound: no such model is served.
        """
        named = self.models | {model.title: model for model in self.models.values()}
        if isinstance(name, str) and name in named:
            return named[name]
        shown = ", ".join(map(repr, self.models))
        raise NotFound(f"model {name!r:.80} is not served here", f"use {shown}")

    def chosen_by(self, client: str) -> ServedModel:
        """The model that a client has chosen for its next requests; else the first."""
        return self._chosen.get(client, self.model)

    def choose(self, client: str, model: ServedModel) -> None:
        """Remember a client's choice; that of the client who chose first is forgotten if there are too many."""
        self._chosen.pop(client, None)
        self._chosen[client] = model
        while len(self._chosen) > MOST_CHOICES:
            self._chosen.popitem(last=False)

    def submit(self, client: str, asked: Asked) -> Job:
        """Put what a client asks for into the queue.

        Raises:
            UserError: a setting is wrong, does not fit the model, or is more than the server makes.
            QueueFull: there is no room now.
        """
        check_text(asked.prompt)
        check_installed(asked.settings)
        settings = with_seed(asked.settings)
        self.caps.check_asked(asked.prompt, settings)
        model = asked.model or self.model
        _check_loras(model, asked.lora_weights)
        maps = dict(asked.controls)
        references = [maps.pop(REFERENCE)] if REFERENCE in maps else []
        (prompt,) = with_inputs(
            [Prompt(asked.prompt, settings)], asked.image, asked.mask, maps or None, references or None
        )
        x, y = (parse_axis(text, self.kind) if text else None for text in (asked.grid_x, asked.grid_y))
        prompts = self._over(prompt, x, y)
        job = Job(
            client,
            list_images(prompts),
            self.batch_size,
            model=model.number,
            lora_weights=asked.lora_weights,
            layout=SheetLayout(asked.prompt, x, y) if x or y else None,
            file_format=asked.file_format,
            quality=asked.quality,
        )
        self.queue.submit(job)
        return job

    def _over(self, prompt: Prompt, x: Axis | None, y: Axis | None) -> list[Prompt]:
        cells = len(x.values if x else [1]) * len(y.values if y else [1])
        self.caps.check_count(cells * prompt.settings.num_images)
        prompts = over_grid([prompt], x, y) if x or y else [prompt]
        for each in prompts:
            self.caps.check_asked(each.prompt, each.settings)
        return prompts

    async def finish(self, job: Job, request: Request) -> None:
        """Wait until a job is finished; if its client goes away, it is cancelled."""
        ended = asyncio.wrap_future(job.ended)
        while not ended.done():
            await asyncio.wait({ended}, timeout=0.5)
            if not ended.done() and await request.is_disconnected():
                self.queue.cancel(job)

    def sheet(self, job: Job) -> Image.Image:
        """All finished images of a job side by side; over the axes of its grid, if it has one.

        Raises:
            UserError: none is finished, or they have too many pixels together.
        """
        if not job.images:
            raise UserError("the job has no images yet", "wait until the first one is made")
        settings = [each.record.settings for each in job.images]
        pixels = sum(each.width * each.height for each in settings)
        if pixels > self.caps.sheet_pixels:
            what = f"a grid of these images has {pixels / 1e6:.0f} megapixels"
            raise UserError(what, "download the images one by one")
        images = [open_made(each) for each in job.images]
        if job.layout and len(images) == job.num_images:
            return grid_sheet(images, [job.layout.prompt], job.layout.x, job.layout.y)
        columns = next(n for n in range(1, len(images) + 1) if n * n >= len(images))
        return image_grid(images, num_columns=columns)

    def sheet_file(self, job: Job) -> bytes:
        """`sheet` as a PNG that says that an AI made it; signed, if the images are."""
        images = list(job.images)
        edited = next((each for each in images if each.record.inputs), None)
        data = sheet_file(self.sheet(job), edited=edited is not None)
        if self.signer is None:
            return data
        files = [(each.file_name, each.data) for each in images]
        return signed_sheet(data, files, (edited or images[0]).record.to_json(), self.signer)


def _check_loras(model: ServedModel, weights: tuple[float, ...] | None) -> None:
    if weights is not None and len(weights) != len(model.loras):
        names = ", ".join(lora.name for lora in model.loras) or "none"
        what = f"loras has {len(weights)} weights"
        raise UserError(what, f"give one for each LoRA of this server's {model.name}, in order ({names})")


def open_made(image: ServedImage) -> Image.Image:
    """The pixels of an image that this server made."""
    return Image.open(io.BytesIO(image.data), formats=[image.file_format]).convert("RGB")


def with_seed(settings: GenerationSettings) -> GenerationSettings:
    """The settings with a seed; one that is left open is drawn."""
    if "seed" in settings.given():
        return settings
    drawn = type(settings)(seed=secrets.randbelow(RANDOM_SEEDS))
    return settings.over(drawn)


def raise_error(job: Job) -> None:
    """Raise the error of a job that failed.

    Raises:
        UserError: why it failed, or that it was cancelled before an image was made.
    """
    if job.error:
        raise job.error
    if job.state == "cancelled" and not job.images:
        raise UserError("the request was cancelled", "send it again")


def client_of(request: Request) -> str:
    """Whose turn a request takes: that of an address.

    On this machine, each browser and each user name of Basic authentication is a client. Other machines cannot get more
    turns by making up names.
    """
    address = request.client.host if request.client else "local"
    name = request.headers.get("x-client", "")[:64] or _user_of(request.headers.get("authorization", ""))
    return f"{address} {name}" if name and is_loopback(address) else address


def _user_of(authorization: str) -> str:
    """The user's name in a header of Basic authentication; empty if it is something else."""
    scheme, _, value = authorization.partition(" ")
    try:
        return b64decode(value).decode().partition(":")[0][:64] if scheme.lower() == "basic" else ""
    except ValueError:
        return ""


def text_of(given: Mapping[str, Any], name: str, default: str = "") -> str:
    """A text in a request.

    Raises:
        UserError: it is something else.
    """
    value = given.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise UserError(f"{name} is {value!r:.80}", "it must be text")
    return value
