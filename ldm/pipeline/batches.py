"""Which images prompts ask for, and which of them are made together."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import index
from typing import NamedTuple

from ldm.diffusion.sampling import SamplingPlan
from ldm.diffusion.windows import Window
from ldm.errors import UserError, warn
from ldm.io.memory import check_memory
from ldm.models.control.hints import REFERENCE
from ldm.models.generation_settings import GenerationSettings
from ldm.models.setting_limits import LARGEST_SEED, MAX_SIZE_PX
from ldm.pipeline.control_images import ControlImage
from ldm.pipeline.expanding import expanded_inputs
from ldm.pipeline.input_images import InputImage
from ldm.pipeline.interpolation import frames
from ldm.tasks import Task

REQUEST_BYTES = 500
"""Roughly what an `ImageRequest` takes in memory."""


@dataclass(frozen=True)
class Prompt:
    """A prompt and its own settings; those left open come from elsewhere.

    Attributes:
        inputs: the images to make an image from, by name, such as `image` and `mask`.
        controls: the images that control it.
    """

    prompt: str
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    inputs: Mapping[str, InputImage] = field(default_factory=dict)
    controls: tuple[ControlImage, ...] = ()

    def over(self, base: GenerationSettings) -> "Prompt":
        """This prompt, with the settings left open taken from `base`."""
        return replace(self, settings=self.settings.over(base))


@dataclass(frozen=True)
class ImageRequest:
    """One image to make.

    Attributes:
        number: its place in the order of the prompts, and of the seeds of a prompt; from 1.
        settings: all but the seed and the number of images.
        inputs: the images to make it from, by name.
        controls: the images that control it, each with its scale.
    """

    number: int
    prompt: str
    seed: int
    settings: GenerationSettings
    inputs: Mapping[str, InputImage] = field(default_factory=dict)
    controls: tuple[ControlImage, ...] = ()

    @property
    def kind(self) -> "Kind":
        """Equal for images that can be made together."""
        first = next((control.image for control in self.controls if control.sets_size), None)
        image = self.inputs.get("image", first)
        strengths = tuple(each.strength for each in self.controls)
        if image is None or {"height", "width"} <= self.settings.given().keys():
            return Kind(self.settings, tuple(self.inputs), strengths)
        width, height = image.size
        return Kind(self.settings, tuple(self.inputs), strengths, (height, width))


Strength = tuple[str, float, tuple[tuple[str, float], ...]]
"""The kind and the scales of a control image."""


class Kind(NamedTuple):
    """What images have in common that can be made together.

    Attributes:
        inputs: the names of the images that they are made from.
        controls: the kinds and scales of their control images.
        size: height and width of the image given, or of the first control image, if the settings leave the size open.
    """

    settings: GenerationSettings
    inputs: tuple[str, ...]
    controls: tuple[Strength, ...] = ()
    size: tuple[int, int] | None = None


def input_sizes(image: ImageRequest) -> tuple[tuple[int, int], ...]:
    """The sizes of the images that an enlarged image is made from, as they decide its windows; else nothing."""
    return tuple(each.size for each in image.inputs.values()) if image.settings.expand else ()


Batch = Sequence[ImageRequest]
"""Images that are made together, all of the same kind."""


def list_images(prompts: Iterable[Prompt], seeds: Sequence[int] | None = None) -> list[ImageRequest]:
    """Every image that the prompts ask for: `num_images` of the first prompt, then those of the next.

    Args:
        seeds: one for each image; by default the i-th image of a prompt has its seed + i, counted from 0.

    Raises:
        UserError: there is no prompt, or a seed is out of range, or there are too many or too few.
    """
    prompts = list(prompts)
    if not prompts:
        raise UserError("no prompt", "give at least one; an empty one is allowed")
    total = sum(each.settings.num_images * _num_frames(each.settings) for each in prompts)
    check_memory(total * REQUEST_BYTES, f"a list of {total:,} images", "ask for fewer in one call")
    prompts = [replace(each, inputs=expanded_inputs(each.inputs, each.settings)) for each in prompts]
    shared = [(each, each.settings.without("seed", "num_images")) for each in prompts]
    rows = [(each, settings) for each, settings in shared for _ in range(each.settings.num_images)]
    own = _counted_seeds(prompts) if seeds is None else _checked_seeds(seeds, prompts, len(rows))
    asked = [
        (each, seed, frame)
        for (each, settings), seed in zip(rows, own, strict=True)
        for frame in frames(settings)
    ]
    return [
        ImageRequest(
            number,
            each.prompt if frame.prompt is None else frame.prompt,
            seed if frame.seed is None else frame.seed,
            frame.settings,
            each.inputs,
            each.controls,
        )
        for number, (each, seed, frame) in enumerate(asked, start=1)
    ]


def _num_frames(settings: GenerationSettings) -> int:
    """The images of an interpolation; 1 without one."""
    goes = settings.to_seed >= 0 or settings.to_prompt
    return settings.num_frames if goes and not settings.frame else 1


def sized(kind: Kind, factor: int = 1) -> GenerationSettings:
    """The settings with the size of the image given, if they leave it open; one side alone keeps its shape.

    Args:
        factor: how many times the image is enlarged.

    Raises:
        UserError: a side would be longer than images may be.
    """
    settings, size = kind.settings, kind.size
    if size is None:
        return settings
    given = settings.given()
    height, width = given.get("height"), given.get("width")
    if height is None:
        height = size[0] * factor if width is None else max(1, round(size[0] * width / size[1]))
    if width is None:
        width = max(1, round(size[1] * height / size[0])) if "height" in given else size[1] * factor
    if max(height, width) > MAX_SIZE_PX:
        what = f"an image of {size[1]} x {size[0]} pixels would give one of {width} x {height}"
        raise UserError(what, f"shrink it, or set height and width: both must be at most {MAX_SIZE_PX}")
    return type(settings)(**{**given, "height": height, "width": width})


def _counted_seeds(prompts: Sequence[Prompt]) -> list[int]:
    for settings in (prompt.settings for prompt in prompts):
        if settings.seed + settings.num_images - 1 > LARGEST_SEED:
            what = f"seed is {settings.seed} with {settings.num_images} images"
            raise UserError(what, f"the last image's seed must be at most {LARGEST_SEED}")
    return [each.settings.seed + i for each in prompts for i in range(each.settings.num_images)]


def _checked_seeds(seeds: Sequence[int], prompts: Sequence[Prompt], num_images: int) -> list[int]:
    """Seeds as plain whole numbers, as JSON has them."""
    if seed := next((prompt.settings.seed for prompt in prompts if prompt.settings.seed), 0):
        raise UserError(f"seed is {seed} and seeds are given too", "give one of the two")
    if len(seeds) != num_images:
        raise UserError(f"{len(seeds)} seeds for {num_images} images", "give one seed for each image")
    if wrong := [each for each in seeds if not 0 <= each <= LARGEST_SEED]:
        raise UserError(f"a seed is {wrong[0]}", f"it must be from 0 to {LARGEST_SEED}")
    return list(map(index, seeds))


@dataclass(frozen=True)
class PromptForm:
    """What the prompts of a batch must have in common.

    Attributes:
        num_chunks: of the prompts, the negative one included. A shorter prompt would have to be padded, which changes
            its image.
        weights: of the prompts that AND joins; (1,) without AND.
    """

    num_chunks: int = 1
    weights: tuple[float, ...] = (1.0,)


def plan_batches(
    images: Batch, batch_size: int, form: Callable[[ImageRequest], Hashable] = lambda image: PromptForm()
) -> list[Batch]:
    """Divide images into batches of at most `batch_size`, each of images of the same kind.

    The batches depend on the images alone, so they are the same for any number of processes.

    Args:
        form: of an image's prompt. Images of different forms are never in one batch.

    Raises:
        UserError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}", "it must be at least 1")
    alike: dict[tuple[Kind, Hashable], list[ImageRequest]] = {}
    for image in images:
        alike.setdefault((image.kind, form(image)), []).append(image)
    return [part for same in alike.values() for part in split(same, batch_size)]


def split(batch: Batch, batch_size: int) -> list[Batch]:
    """A batch in parts of at most `batch_size` images."""
    return [batch[start : start + batch_size] for start in range(0, len(batch), batch_size)]


@dataclass(frozen=True)
class PlannedBatch:
    """A batch with its settings completed and its sampler planned.

    Attributes:
        settings: all settings, none of them left open.
        task: what the model does with the images given.
        form: of the prompts.
        plan: of the sampler, shared by all batches with the same settings.
        refining: of a second model, which goes on where `plan` stops; None without one.
        windows: in which an enlarged image is made, one after another; none for images made at once.
        encoded_in_tiles: the images given are too large to encode at once.
    """

    images: Batch
    settings: GenerationSettings
    task: Task
    form: PromptForm
    plan: SamplingPlan
    windows: tuple[Window, ...] = ()
    encoded_in_tiles: bool = False
    refining: SamplingPlan | None = None

    @property
    def steps_at_once(self) -> int:
        """The sampling steps of the batch, or of one window, those of a second model included."""
        return self.plan.num_steps + (self.refining.num_steps if self.refining else 0)

    @property
    def num_steps(self) -> int:
        """The sampling steps of the batch, those of all windows together."""
        return self.steps_at_once * max(len(self.windows), 1)

    def refined(self, plan: SamplingPlan) -> "PlannedBatch":
        """What a second model does: the rest of the sampling, without the networks that control the first."""
        images = [replace(image, controls=()) for image in self.images]
        return replace(self, images=images, plan=plan, refining=None)

    @property
    def prompts(self) -> list[str]:
        return [image.prompt for image in self.images]

    @property
    def controls(self) -> tuple[ControlImage, ...]:
        """The control images of the first image that are maps: kinds and scales are the same for all."""
        return tuple(each for each in self.images[0].controls if each.kind != REFERENCE)

    @property
    def references(self) -> tuple[ControlImage, ...]:
        """The reference images of the first image, which are its last control images."""
        return tuple(each for each in self.images[0].controls if each.kind == REFERENCE)

    @property
    def seeds(self) -> list[int]:
        return [image.seed for image in self.images]


def halved(waiting: Sequence[PlannedBatch]) -> list[PlannedBatch]:
    """The batches that are left, in parts half the size of the first, which did not fit in memory.

    Raises:
        UserError: the first is a single image.

    Warns:
        LdmWarning: how many images are made at once from here on.
    """
    at_once = len(waiting[0].images)
    if at_once == 1:
        raise UserError("one image does not fit in memory", "try --low-memory or a smaller size")
    half = at_once // 2
    warn(f"{at_once} images at once do not fit in memory, continuing with {half}")
    return [replace(batch, images=part) for batch in waiting for part in split(batch.images, half)]
