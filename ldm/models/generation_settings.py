"""The settings of an image: one model from which everything that names a setting is derived.

A setting is one annotated field of `GenerationSettings`. Its type, bounds, description and `Setting` give the option of
`ldm generate` and its help, the key in a prompt file, the argument of `Pipeline.generate`, the checks, the default in a
model's `ldm.json`, and what an image's record and its A1111 text hold.

A field that was never set is left open: `given` leaves it out and `over` takes it from another layer. From the weakest
to the strongest, the layers are the model's defaults, the record of an image that is reproduced, options, a prompt's
own settings.

Nothing heavy is imported here: the command line reads this module for `ldm --help`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ldm.config import Settings
from ldm.diffusion.interval import EVERYWHERE
from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.errors import UserError, unknown_name
from ldm.models.expansion import Fill, checked_expansion, expansion_text
from ldm.models.setting_checks import (
    Number,
    Whole,
    check_scheduler,
    check_text,
    checked_canny_thresholds,
    checked_control_interval,
    checked_interval,
    crop_pair,
    size_pair,
)
from ldm.models.setting_limits import (
    AS_POSITIVE,
    LARGEST_SEED,
    MAX_IMAGES,
    MAX_PROMPT_CHUNKS,
    MAX_SIZE_PX,
    MAX_STEPS,
    UNTOLD,
)
from ldm.models.timestep_list import checked_timesteps, parse_timesteps, timesteps_text

PromptWeights = Literal["none", "a1111", "comfy"]
"""How the weights of words in a prompt are applied; `none` reads brackets as text."""

GuidanceMethod = Literal["cfg", "apg", "cfg-zero", "pag", "autoguidance"]
"""The functions of `ldm.diffusion.guidance` and `ldm.diffusion.guidance_methods`."""

TEXT_TO_IMAGE = "text-to-image"
MASKED = ("blended-inpaint", "inpaint")
FROM_AN_IMAGE = ("image-to-image", "depth-from-image", *MASKED)
IN_WINDOWS = ("upscale", "restore")
SIZES, SECOND_PROMPT, AESTHETIC_SCORE = "sizes", "a second prompt", "an aesthetic score"
"""What models of some families are told besides a prompt."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {"guidance_interval": (0.0, 0.5), "deep_features_every": 3},
    "full": {"guidance_interval": EVERYWHERE, "deep_features_every": 1},
}
"""Settings by name: what may be skipped for speed, and skipping nothing."""


@dataclass(frozen=True)
class Setting:
    """What a field of `GenerationSettings` says besides its type, bounds, default and description.

    Attributes:
        metavar: how its value is written in the help, such as `N`; None for a switch.
        model_default: a model may have its own default, in `ldm.json`.
        recorded: the record of an image holds it.
        recorded_if_changed: the record leaves it out at its default, as records of older versions do.
        tasks: the tasks that it has an effect on, none of which is text-to-image; records of others leave it out.
            Empty for all tasks.
        only_with: what must be given for it to have an effect, `control` or `refiner`; other records leave it out.
        told: what models it is for are told besides a prompt; empty for all models. See `Family.told`.
        infotext: its key in A1111's text, or None if it is not part of it.
        infotext_value: its value there; a None is left out.
    """

    metavar: str | None = None
    model_default: bool = False
    recorded: bool = True
    recorded_if_changed: bool = False
    tasks: tuple[str, ...] = ()
    only_with: str = ""
    told: str = ""
    infotext: str | None = None
    infotext_value: Callable[[Any], Any] = lambda value: value

    def is_for(self, task: str) -> bool:
        """Whether it has an effect on images of a task."""
        return not self.tasks or task in self.tasks


def sampler_title(scheduler: str) -> str:
    """What A1111 calls a scheduler; an unknown one keeps its name."""
    return SCHEDULERS[scheduler].title if scheduler in SCHEDULERS else scheduler


class GenerationSettings(Settings):
    """The settings of an image; those that were never set are left open.

    Example:
        GenerationSettings(scheduler="euler").over(model_defaults).num_inference_steps
    """

    seed: Annotated[int, Setting("N", recorded=False, infotext="Seed")] = Field(
        0,
        ge=0,
        le=LARGEST_SEED,
        strict=True,
        description="The number that an image's noise is drawn from. The same prompt, settings and seed give the same "
        "image: alone or in a batch, with the same noise bit for bit and pixels within 1/255.",
    )
    num_images: Annotated[int, Setting("N", recorded=False)] = Field(
        1,
        ge=1,
        le=MAX_IMAGES,
        strict=True,
        description="Images of each prompt, with the seeds seed, seed + 1, seed + 2, ...",
    )
    to_seed: Annotated[int, Setting("N", recorded_if_changed=True)] = Field(
        -1,
        ge=-1,
        le=LARGEST_SEED,
        strict=True,
        description="Make num_frames images on the way from the noise of the seed to that of this one. -1 is none.",
    )
    to_prompt: Annotated[str, Setting("TEXT", recorded_if_changed=True), AfterValidator(check_text)] = Field(
        "",
        description="Make num_frames images on the way from the prompt to this one; with to_seed, along both.",
    )
    num_frames: Annotated[int, Setting("N", recorded=False)] = Field(
        8,
        ge=1,
        le=MAX_IMAGES,
        strict=True,
        description="Images from the first to the last, both included, with to_seed or to_prompt.",
    )
    frame: Annotated[float, Setting("X", recorded_if_changed=True)] = Field(
        0.0,
        ge=0,
        le=1,
        strict=True,
        description="Make a single image of those with to_seed or to_prompt: 0.5 is halfway, 1 the last. 0 makes all.",
    )
    negative_prompt: Annotated[str, Setting("TEXT"), AfterValidator(check_text)] = Field(
        "", description="What the images should not show; needs a guidance scale above 1."
    )
    prompt_2: Annotated[
        str, Setting("TEXT", recorded_if_changed=True, told=SECOND_PROMPT), AfterValidator(check_text)
    ] = Field(
        "", description="For models with two text encoders: what the second one reads in place of the prompt."
    )
    negative_prompt_2: Annotated[
        str, Setting("TEXT", recorded_if_changed=True, told=SECOND_PROMPT), AfterValidator(check_text)
    ] = Field("", description="The same for the negative prompt.")
    original_size: Annotated[
        tuple[Whole, Whole],
        Setting("HEIGHT WIDTH", recorded_if_changed=True, told=SIZES),
        size_pair("original_size"),
    ] = Field(
        UNTOLD,
        description="For models that are told sizes (SDXL): how large the image was before it was cropped, in pixels; "
        "small sizes give blurred images. 0 0 is the size of the image.",
    )
    crop: Annotated[
        tuple[Whole, Whole],
        Setting("TOP LEFT", recorded_if_changed=True, told=SIZES),
        crop_pair("crop", UNTOLD),
    ] = Field(
        UNTOLD,
        description="For the same models: where the image was cut out. 0 0 shows objects whole, 0 400 as if the left "
        "side had been cut off.",
    )
    target_size: Annotated[
        tuple[Whole, Whole],
        Setting("HEIGHT WIDTH", recorded_if_changed=True, told=SIZES),
        size_pair("target_size"),
    ] = Field(
        UNTOLD,
        description="For the same models: the size that the image is said to have. 0 0 is the size that it has.",
    )
    negative_original_size: Annotated[
        tuple[Whole, Whole],
        Setting("HEIGHT WIDTH", recorded_if_changed=True, told=SIZES),
        size_pair("negative_original_size"),
    ] = Field(
        UNTOLD,
        description="What the model is told beside the negative prompt, so that images move away from it, such as "
        "512 512. 0 0 is as beside the prompt.",
    )
    negative_crop: Annotated[
        tuple[Whole, Whole],
        Setting("TOP LEFT", recorded_if_changed=True, told=SIZES),
        crop_pair("negative_crop", AS_POSITIVE),
    ] = Field(AS_POSITIVE, description="The same for the crop. -1 -1 is as beside the prompt.")
    negative_target_size: Annotated[
        tuple[Whole, Whole],
        Setting("HEIGHT WIDTH", recorded_if_changed=True, told=SIZES),
        size_pair("negative_target_size"),
    ] = Field(UNTOLD, description="The same for the target size. 0 0 is as beside the prompt.")
    aesthetic_score: Annotated[float, Setting("X", recorded_if_changed=True, told=AESTHETIC_SCORE)] = Field(
        6.0,
        ge=0,
        le=10,
        strict=True,
        description="For refiners of SDXL: how good the image should look, from 0 to 10.",
    )
    negative_aesthetic_score: Annotated[
        float, Setting("X", recorded_if_changed=True, told=AESTHETIC_SCORE)
    ] = Field(
        2.5,
        ge=0,
        le=10,
        strict=True,
        description="What the model is told beside the negative prompt.",
    )
    denoising_end: Annotated[float, Setting("X", only_with="refiner")] = Field(
        0.8,
        ge=0,
        le=1,
        strict=True,
        description="With a second model (--refiner): the share of the sampling that the first one does. The second "
        "goes on from its noisy latents.",
    )
    prompt_weights: Annotated[
        PromptWeights,
        Setting(
            "none|a1111|comfy",
            recorded_if_changed=True,
            infotext="Prompt weights",
            infotext_value=lambda rule: None if rule == "none" else rule,
        ),
    ] = Field(
        "none",
        description="Read (word:1.3), [word], [from:to:0.5], BREAK and AND in prompts as A1111 does, and apply weights "
        "as A1111 (a1111) or ComfyUI (comfy) does. none reads brackets as plain text.",
    )
    height: Annotated[int, Setting("PIXELS", model_default=True)] = Field(
        512,
        ge=1,
        le=MAX_SIZE_PX,
        strict=True,
        description="Height of the image; models work best at the size they were trained on.",
    )
    width: Annotated[int, Setting("PIXELS", model_default=True)] = Field(
        512,
        ge=1,
        le=MAX_SIZE_PX,
        strict=True,
        description="Width of the image; both are rounded to a multiple that the model can make.",
    )
    num_inference_steps: Annotated[int, Setting("N", model_default=True, infotext="Steps")] = Field(
        25,
        ge=1,
        le=MAX_STEPS,
        strict=True,
        description="Sampling steps: more take longer, and above about 50 little changes.",
    )
    guidance_scale: Annotated[float, Setting("X", model_default=True, infotext="CFG scale")] = Field(
        7.5,
        ge=0,
        strict=True,
        description="How strongly to follow the prompt. 1 is without guidance and twice as fast; 3 to 9 are usual; "
        "higher values make the colours garish.",
    )
    guidance: Annotated[
        GuidanceMethod,
        Setting(
            "cfg|apg|cfg-zero|pag|autoguidance",
            recorded_if_changed=True,
            infotext="Guidance",
            infotext_value=lambda name: None if name == "cfg" else name,
        ),
    ] = Field(
        "cfg",
        description="How to guide: cfg; apg, less garish at high scales; cfg-zero; pag, which also perturbs the "
        "attention; autoguidance with a weaker model (--guide-model). All use guidance_scale.",
    )
    apg_eta: Annotated[float, Setting("X", recorded_if_changed=True)] = Field(
        0.0,
        ge=0,
        strict=True,
        description="With apg: how much to keep of the part that makes colours garish. 1 is all of it.",
    )
    apg_momentum: Annotated[float, Setting("X", recorded_if_changed=True)] = Field(
        -0.5,
        ge=-1,
        le=1,
        strict=True,
        description="With apg: how much of the previous step's direction to add; a negative number takes it away.",
    )
    apg_norm_threshold: Annotated[float, Setting("X", recorded_if_changed=True)] = Field(
        0.0,
        ge=0,
        strict=True,
        description="With apg: the largest step of guidance, as a norm over the image's latents; the paper uses 7.5 to "
        "15 for images of 512 to 1024 pixels. 0 is without a limit.",
    )
    pag_scale: Annotated[float, Setting("X", recorded_if_changed=True)] = Field(
        3.0,
        ge=0,
        strict=True,
        description="With pag: how far to move away from the prediction with perturbed attention. 0 is cfg.",
    )
    guidance_rescale: Annotated[
        float,
        Setting(
            "X", model_default=True, infotext="Guidance rescale", infotext_value=lambda share: share or None
        ),
    ] = Field(
        0.0,
        ge=0,
        le=1,
        strict=True,
        description="Reduces the over-exposure of a high guidance scale: 0 is off, 0.7 is usual where needed.",
    )
    scheduler: Annotated[
        str,
        Setting("NAME", model_default=True, infotext="Sampler", infotext_value=sampler_title),
        AfterValidator(check_scheduler),
    ] = Field(
        "dpmpp_2m",
        description="The sampler; `--scheduler list` prints all of them. `model` is the one that the model's own "
        "scheduler config describes, which is the default where its ldm.json names none.",
    )
    strength: Annotated[float, Setting("X", tasks=FROM_AN_IMAGE, infotext="Denoising strength")] = Field(
        0.8,
        ge=0,
        le=1,
        strict=True,
        description="How much of an image given with --image may change: the share of the sampling steps that are run "
        "on it. Near 0 little changes, 1 makes it anew. With a mask the default is 1.",
    )
    image_guidance_scale: Annotated[float, Setting("X", tasks=("edit",), infotext="Image CFG scale")] = Field(
        1.5,
        ge=0,
        strict=True,
        description="How closely an edited image follows the one given with --image, for a model that edits by "
        "instruction: 1.2 to 2 are usual, and higher values change less.",
    )
    upscale: Annotated[int, Setting("N", tasks=("upscale",))] = Field(
        0,
        ge=0,
        le=64,
        strict=True,
        description="Enlarge the image given with --image this many times. A model trained to upscale always enlarges, "
        "by a factor of its own, which this must be if it is given.",
    )
    noise_level: Annotated[int, Setting("N", tasks=("upscale",), infotext="Noise level")] = Field(
        20,
        ge=0,
        le=999,
        strict=True,
        description="Noise added to an image that is enlarged, which hides its defects: 0 keeps to the image, more "
        "invents more. Most models take up to 350.",
    )
    restore: Annotated[float, Setting("X", tasks=("restore",), infotext="Damage")] = Field(
        0.5,
        ge=0,
        le=1,
        strict=True,
        description="How damaged the image given with --image is, for a model trained to restore: 0 is hardly, 1 as "
        "much as in its training.",
    )
    tile_size: Annotated[int, Setting("PIXELS", tasks=IN_WINDOWS)] = Field(
        0,
        ge=0,
        le=MAX_SIZE_PX,
        strict=True,
        description="Enlarge or restore a larger image in overlapping windows with sides of this many pixels of the "
        "result, so that memory does not limit its size. 0 is one piece; left out, it is the model's own size.",
    )
    tile_overlap: Annotated[int, Setting("PIXELS", tasks=IN_WINDOWS)] = Field(
        0,
        ge=0,
        le=MAX_SIZE_PX,
        strict=True,
        description="How far these windows overlap; there they are blended at each step. Left out, it is a quarter of "
        "their side.",
    )
    mask_feather: Annotated[int, Setting("PIXELS", tasks=MASKED)] = Field(
        0,
        ge=0,
        strict=True,
        description="Blend the new part of a masked image into the old over this many pixels inside the mask's edge.",
    )
    match_colors: Annotated[bool, Setting(tasks=MASKED)] = Field(
        False,
        strict=True,
        description="Shift the colours of the new part of a masked image by what the model changed around it.",
    )
    control_interval: Annotated[
        tuple[Number, Number],
        Setting("START END", only_with="control"),
        AfterValidator(checked_control_interval),
    ] = Field(
        EVERYWHERE,
        description="Use control images (--control) in a part of the sampling only, given as fractions of the steps: "
        "0 0.5 fixes the layout in the first half and leaves the details free.",
    )
    guess_mode: Annotated[bool, Setting(only_with="control")] = Field(
        False,
        strict=True,
        description="Let a ControlNet control the image without help from the prompt, which may be empty: only the "
        "prompt's half of the guidance is controlled, and deep features more than shallow ones.",
    )
    canny_thresholds: Annotated[
        tuple[Number, Number],
        Setting("LOW HIGH", only_with="control"),
        AfterValidator(checked_canny_thresholds),
    ] = Field(
        (100.0, 200.0),
        description="For --control canny: edges start where the gradient is above HIGH and go on where it is above "
        "LOW; lower values find more.",
    )
    expand: Annotated[
        str,
        Setting(
            "SIDE=PIXELS,...",
            tasks=MASKED,
            recorded_if_changed=True,
            infotext="Expand",
            infotext_value=lambda text: text or None,
        ),
        BeforeValidator(expansion_text),
        AfterValidator(checked_expansion),
    ] = Field(
        "",
        description="Enlarge the image given with --image and make what is new: top, bottom, left and right, such as "
        "top=64,left=32. The image itself stays as it is.",
    )
    expand_fill: Annotated[Fill, Setting("mirror|edge|noise", tasks=MASKED, recorded_if_changed=True)] = (
        Field(
            "mirror",
            description="What the new area of an enlarged image holds before sampling. It has no effect with "
            "strength 1, the default.",
        )
    )
    expand_overlap: Annotated[int, Setting("PIXELS", tasks=MASKED, recorded_if_changed=True)] = Field(
        16,
        ge=0,
        le=MAX_SIZE_PX,
        strict=True,
        description="How far the model draws over the edge of an image that is enlarged, so that the new area fits. "
        "The image's own pixels are then put back.",
    )
    karras: Annotated[
        bool, Setting(infotext="Schedule type", infotext_value=lambda on: "Karras" if on else None)
    ] = Field(
        False,
        strict=True,
        description="Space the noise levels as Karras et al. 2022 do; often better with few steps. Left out, the "
        "model's own scheduler has the spacing of its config.",
    )
    timesteps: Annotated[
        str,
        Setting("T,T,...", recorded_if_changed=True),
        BeforeValidator(timesteps_text),
        AfterValidator(checked_timesteps),
    ] = Field(
        "",
        description="The timesteps to sample at, from most to least noise, in place of the sampler's own spacing: "
        "`ldm tune-steps` finds them for a model. num_inference_steps is then their number.",
    )
    churn: Annotated[
        float,
        Setting(
            "X", recorded_if_changed=True, infotext="Sigma churn", infotext_value=lambda churn: churn or None
        ),
    ] = Field(
        0.0,
        ge=0,
        le=MAX_STEPS,
        strict=True,
        description="With heun and a model of path edm, add noise again in each step, as Karras et al. 2022 do with 10 "
        "to 80. 0 adds none.",
    )
    max_prompt_chunks: Annotated[int, Setting("N", model_default=True)] = Field(
        1,
        ge=1,
        le=MAX_PROMPT_CHUNKS,
        strict=True,
        description="Contexts of the text encoder that a long prompt may fill, each about 75 words with CLIP; the rest "
        "of the prompt is left out, with a warning.",
    )
    guidance_interval: Annotated[
        tuple[Number, Number],
        Setting("START END", model_default=True),
        AfterValidator(checked_interval),
    ] = Field(
        EVERYWHERE,
        description="Use guidance in a part of the sampling only; the rest is twice as fast, and the result often "
        "better. Rising numbers are fractions of the steps: 0 0.5 is the first half. Falling numbers are noise "
        "levels, noise over signal: 5 0.3.",
    )
    deep_features_every: Annotated[int, Setting("N")] = Field(
        1,
        ge=1,
        le=MAX_STEPS,
        strict=True,
        description="Compute the deep levels of the network only at every N-th step and reuse them in between: "
        "faster, but the image changes, less so with more steps.",
    )
    watermark: Annotated[bool, Setting(recorded_if_changed=True)] = Field(
        False,
        description="Hide a watermark in the image, from 256 x 256 pixels, that says which model and which image it "
        "is. It survives JPEG, resizing and screenshots; `ldm provenance` finds it.",
    )
    preset: Annotated[str, Setting("NAME", recorded=False)] = Field(
        "",
        description="fast: guidance in the first half of the steps and deep levels at every third; full: skip "
        "nothing, even where the model's own default does. Options beside it win.",
    )

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        """None is left open, NumPy's and torch's numbers are plain ones, and a preset becomes its settings."""
        if not isinstance(given, Mapping):
            return given
        named = {
            key: value.tolist() if hasattr(value, "tolist") else value
            for key, value in given.items()
            if value is not None
        }
        return _counted({**preset_settings(named.pop("preset", "")), **named})

    def __eq__(self, other: object) -> bool:
        """Equal if the same settings are given: one that is left open is not the same as one set to the default."""
        return type(self) is type(other) and self.given() == other.given()

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.given().items())))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield from self.given().items()

    def given(self) -> dict[str, Any]:
        """The settings that are not left open."""
        return self.model_dump(exclude_unset=True)

    def over(self, base: "GenerationSettings") -> Self:
        """These settings, with those left open taken from `base`.

        A number of steps takes the place of timesteps in `base`.
        """
        given, below = self.given(), base.given()
        if "num_inference_steps" in given and "timesteps" not in given:
            below.pop("timesteps", None)
        return type(self)(**{**below, **given})

    def without(self, *names: str) -> Self:
        """These settings with some of them left open."""
        return type(self)(**{name: value for name, value in self.given().items() if name not in names})

    def model_defaults(self) -> dict[str, Any]:
        """The settings for which a model may have its own default, as `defaults` in `ldm.json`."""
        return {
            name: getattr(self, name) for name, setting in settings_of(type(self)) if setting.model_default
        }

    def written(self, task: str = TEXT_TO_IMAGE, given: Collection[str] = ()) -> dict[str, Any]:
        """`recorded`, without the settings that a record leaves out at their default."""
        left_out = {name for name, setting in settings_of(type(self)) if setting.recorded_if_changed}
        left_out -= self.changed()
        return {name: value for name, value in self.recorded(task, given).items() if name not in left_out}

    def changed(self) -> set[str]:
        """The settings that records leave out at their default, and that have another value."""
        return {
            name
            for name, setting in settings_of(type(self))
            if setting.recorded_if_changed and getattr(self, name) != type(self).model_fields[name].default
        }

    def recorded(self, task: str = TEXT_TO_IMAGE, given: Collection[str] = ()) -> dict[str, Any]:
        """The settings that have an effect on an image of a task, ready for JSON.

        Args:
            given: what it was made with besides the task's images, such as `control`.
        """
        names = {
            name
            for name, setting in settings_of(type(self))
            if setting.recorded
            and setting.is_for(task)
            and (not setting.only_with or setting.only_with in given)
        }
        return self.model_dump(mode="json", include=names)


def _counted(named: dict[str, Any]) -> dict[str, Any]:
    """The settings with the number of steps that `timesteps` stands for.

    Raises:
        UserError: another number is given too.
    """
    text = timesteps_text(named.get("timesteps", ""))
    if not isinstance(text, str) or not text:
        return named
    count = len(parse_timesteps(text))
    if named.get("num_inference_steps", count) != count:
        what = f"timesteps has {count} numbers, and num_inference_steps is {named['num_inference_steps']}"
        raise UserError(what, "leave one of the two out")
    return {**named, "num_inference_steps": count}


def preset_settings(name: str) -> dict[str, Any]:
    """The settings that a preset stands for; without a name, none.

    Raises:
        UserError: there is no such preset.
    """
    if not name:
        return {}
    if not isinstance(name, str) or name not in PRESETS:
        raise unknown_name("preset", str(name), PRESETS)
    return dict(PRESETS[name])


def settings_of(kind: type[GenerationSettings]) -> Iterator[tuple[str, Setting]]:
    """The name and the `Setting` of every field, in order."""
    for name, field in kind.model_fields.items():
        yield name, next(each for each in field.metadata if isinstance(each, Setting))
