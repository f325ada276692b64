"""What the page and the HTTP interfaces share: from a client's request to a job in the queue."""

import asyncio
import io
import secrets
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from PIL import Image
from starlette.requests import Request

from ldm.errors import UserError
from ldm.generation.prompts import check_installed
from ldm.io.images import image_grid
from ldm.io.png import with_chunks
from ldm.models.control.hints import REFERENCE
from ldm.models.generation_settings import GenerationSettings
from ldm.models.setting_checks import check_text
from ldm.pipeline.batches import Prompt, list_images
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.settings import with_inputs
from ldm.pipeline.xy_grid import Axis, grid_sheet, over_grid, parse_axis
from ldm.provenance.marks import EDITED, MADE, mark_texts, source_type_of
from ldm.tasks import TASKS
from ldm.web.caps import Caps
from ldm.web.queue import Job, JobQueue, SheetLayout
from ldm.web.uploads import UploadReader

RANDOM_SEEDS = 2**32


@dataclass(frozen=True)
class ServedLora:
    """A LoRA that the server was started with."""

    name: str
    weight: float


@dataclass(frozen=True)
class ServedModel:
    """What clients are told about the model.

    Attributes:
        model_id: a name without a path.
        task: that it was trained for.
        defaults: its own, completed with those of all settings.
        told: inputs besides a prompt that the model takes; see `Setting.told`.
        has_refiner: whether a second model finishes its images.
        controls: the kinds of control images that it takes.
        has_references: whether it takes images as prompts.
    """

    model_id: str
    weights_hash: str | None
    task: str
    defaults: GenerationSettings
    told: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    has_references: bool = False
    has_refiner: bool = False
    loras: tuple[ServedLora, ...] = ()

    def task_of(self, given: Sequence[str]) -> str | None:
        """What the model does with these images; None if it has no use for them."""
        able = (task for task in TASKS.values() if task.trained_as == self.task)
        return next((task.name for task in able if set(task.given) == set(given)), None)


def describe(pipeline: Pipeline, loras: Sequence[ServedLora] = ()) -> ServedModel:
    """What clients are told about a pipeline's model."""
    parts, kind = pipeline.parts, type(pipeline.defaults)
    return ServedModel(
        pipeline.model_id,
        pipeline.weights_hash,
        parts.task,
        pipeline.defaults.over(kind()),
        tuple(pipeline.told),
        tuple(parts.controls),
        parts.image_prompts is not None,
        pipeline.refiner is not None,
        tuple(loras),
    )


@dataclass(frozen=True)
class Asked:
    """What a client asks for, decoded but not yet checked against the model.

    Attributes:
        image, mask: to start from; the mask is grey, white where the image may change.
        controls: control images by kind, each with its scale; `reference` is an image that serves as a prompt.
        lora_weights: None for those of the server.
        grid_x, grid_y: as of `ldm.pipeline.xy_grid.parse_axis`; empty for none.
    """

    prompt: str
    settings: GenerationSettings
    image: Image.Image | None = None
    mask: Image.Image | None = None
    controls: Mapping[str, tuple[Image.Image, float]] = field(default_factory=dict)
    lora_weights: tuple[float, ...] | None = None
    grid_x: str = ""
    grid_y: str = ""


class Service:
    """A model, its queue, and what decodes uploads.

    Attributes:
        kind: the settings of an image.
        batch_size: images made at once, as of `ldm generate --batch-size`.
    """

    def __init__(
        self,
        model: ServedModel,
        queue: JobQueue,
        *,
        batch_size: int,
        kind: type[GenerationSettings] = GenerationSettings,
    ) -> None:
        self.model = model
        self.queue = queue
        self.batch_size = batch_size
        self.kind = kind
        self.uploads = UploadReader(queue.caps.upload_pixels)

    @property
    def caps(self) -> Caps:
        return self.queue.caps

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
        self._check_loras(asked.lora_weights)
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
            lora_weights=asked.lora_weights,
            layout=SheetLayout(asked.prompt, x, y) if x or y else None,
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

    def _check_loras(self, weights: tuple[float, ...] | None) -> None:
        if weights is not None and len(weights) != len(self.model.loras):
            names = ", ".join(lora.name for lora in self.model.loras) or "none"
            what = f"loras has {len(weights)} weights"
            raise UserError(what, f"give one for each LoRA of this server, in order ({names})")

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
        images = [open_made(each.png) for each in job.images]
        if job.layout and len(images) == job.num_images:
            return grid_sheet(images, [job.layout.prompt], job.layout.x, job.layout.y)
        columns = next(n for n in range(1, len(images) + 1) if n * n >= len(images))
        return image_grid(images, num_columns=columns)

    def sheet_file(self, job: Job) -> bytes:
        """`sheet` as a PNG that says that an AI made it."""
        edited = any(source_type_of(each.record.to_json()) == EDITED for each in job.images)
        return with_chunks(self.sheet(job), mark_texts(EDITED if edited else MADE))


def open_made(png: bytes) -> Image.Image:
    """An image that this server made."""
    return Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB")


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


def is_loopback(host: str) -> bool:
    """Whether an address or a host's name is this machine's own."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in ("localhost", "local")


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
