"""The form of the page, derived from the settings of an image: a new setting appears by itself."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from ldm.diffusion.scheduler_names import OWN_SCHEDULER, SCHEDULERS
from ldm.errors import UserError
from ldm.models.control.hints import REFERENCE
from ldm.models.generation_settings import PRESETS, GenerationSettings, Setting, settings_of
from ldm.models.setting_limits import LARGEST_SEED, Pair
from ldm.models.settings_reading import bounds, parse_settings, plain_type
from ldm.web.caps import Caps
from ldm.web.served_model import ServedModel
from ldm.web.uploads import from_base64

FIRST = (
    "negative_prompt", "num_images", "seed", "width", "height", "num_inference_steps", "guidance_scale",
    "scheduler", "strength", "image_guidance_scale", "upscale", "restore", "noise_level",
)  # fmt: skip
"""The settings that are shown at once; all others are under "More settings"."""

GIVEN = ("", "image", "image mask")
"""What the page may give with a prompt."""

LONG_TEXTS = ("negative_prompt", "to_prompt", "prompt_2", "negative_prompt_2")


def describe_form(
    kind: type[GenerationSettings], model: ServedModel, caps: Caps, names: Sequence[str] = ()
) -> dict[str, Any]:
    """Everything that the page needs to build its form for a model, ready for JSON.

    Args:
        names: of all models.
    """
    return {
        "model": model.name,
        "models": list(names or [model.name]),
        "tasks": {given: model.task_of(given.split()) for given in GIVEN},
        "fields": list(describe_fields(kind, model, caps)),
        "loras": [{"name": lora.name, "weight": lora.weight} for lora in model.loras],
        "controls": [*model.controls, *([REFERENCE] if model.has_references else [])],
        "caps": {"side_px": caps.side_px, "images": caps.images, "request_bytes": caps.request_bytes},
    }


def describe_fields(
    kind: type[GenerationSettings], model: ServedModel, caps: Caps
) -> Iterator[dict[str, Any]]:
    """A description of each setting that has an effect on the model's images, first those that are shown at once."""
    besides = {"control": bool(model.controls), "refiner": model.has_refiner}
    rank = {name: number for number, name in enumerate(FIRST)}
    named = dict(settings_of(kind))
    for name in sorted(named, key=lambda each: rank.get(each, len(rank))):
        setting, field = named[name], kind.model_fields[name]
        if setting.told and setting.told not in model.told:
            continue
        if setting.only_with and not besides[setting.only_with]:
            continue
        yield {
            "name": name,
            "label": label_of(name),
            "help": field.description,
            "first": name in FIRST,
            "tasks": list(setting.tasks),
            "default": _default(name, field, setting, model),
            **_input(name, field, caps),
        }


def label_of(name: str) -> str:
    """Such as `Guidance scale`, and `Inference steps` for their number."""
    text = name.removeprefix("num_").replace("_", " ")
    return text[0].upper() + text[1:]


def _default(name: str, field: FieldInfo, setting: Setting, model: ServedModel) -> Any:
    """What the form starts with; None for a seed, which is drawn, and for what depends on the image given."""
    if name == "seed" or setting.tasks:
        return None
    found = getattr(model.defaults, name) if hasattr(model.defaults, name) else field.default
    return list(found) if isinstance(found, tuple) else found


def _input(name: str, field: FieldInfo, caps: Caps) -> dict[str, Any]:
    """The kind of input, and what it accepts."""
    low, high = bounds(field)
    annotation = field.annotation
    if name == "scheduler":
        usable = [each for each, entry in SCHEDULERS.items() if entry.available]
        titles = {each: SCHEDULERS[each].title for each in usable}
        return {"input": "choice", "choices": {OWN_SCHEDULER: "the model's own", **titles}}
    if name == "preset":
        return {"input": "choice", "choices": {"": "none", **{each: each for each in PRESETS}}}
    if get_origin(annotation) is Literal:
        return {"input": "choice", "choices": {each: each for each in get_args(annotation)}}
    if get_origin(annotation) is tuple:
        return {"input": "pair", "whole": plain_type(field) is Pair}
    if annotation is bool:
        return {"input": "switch"}
    if annotation in (int, float):
        most = {"height": caps.side_px, "width": caps.side_px, "num_inference_steps": caps.steps}
        most |= {"num_images": caps.images}
        largest = most.get(name, None if high == LARGEST_SEED else high)
        return {"input": "number", "whole": annotation is int, "min": low, "max": largest}
    return {"input": "text", "long": name in LONG_TEXTS}


NOT_SETTINGS = (
    "prompt",
    "model",
    "image",
    "mask",
    "controls",
    "loras",
    "grid_x",
    "grid_y",
    "mask_from_alpha",
)
"""The keys of a request that are not settings."""


def read_settings(given: Mapping[str, Any], kind: type[GenerationSettings]) -> GenerationSettings:
    """The settings in a request.

    Raises:
        UserError: one is unknown, wrong or out of range.
    """
    return parse_settings({key: given[key] for key in given if key not in NOT_SETTINGS}, kind)


def read_weights(given: Any) -> tuple[float, ...] | None:
    """The weights of LoRAs; None if they are left to the server.

    Raises:
        UserError: they are not a list of numbers from -4 to 4.
    """
    if given is None:
        return None
    numbers = isinstance(given, list) and all(type(each) in (int, float) and abs(each) <= 4 for each in given)
    if not numbers:
        raise UserError(f"loras is {given!r:.80}", "it must be a list of weights from -4 to 4")
    return tuple(map(float, given))


def read_controls(given: Any) -> dict[str, tuple[bytes, float]]:
    """Control images by kind, still encoded, each with its scale.

    Raises:
        UserError: they are not an object such as `{"canny": {"image": BASE64, "scale": 0.8}}`.
    """
    if given is None:
        return {}
    hint = 'it must be an object such as {"canny": {"image": BASE64, "scale": 0.8}}'
    if not isinstance(given, Mapping):
        raise UserError(f"controls is {given!r:.80}", hint)
    found = {}
    for kind, each in given.items():
        if not isinstance(each, Mapping) or type(each.get("scale", 1)) not in (int, float):
            raise UserError(f"controls has {kind!r:.40}: {each!r:.80}", hint)
        found[kind] = (from_base64(each.get("image"), f"controls.{kind}.image"), float(each.get("scale", 1)))
    return found
