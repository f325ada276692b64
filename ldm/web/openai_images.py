"""OpenAI's interface for images, so that its clients work here unchanged: `/v1/images/generations` and `/edits`.

Besides OpenAI's fields, every setting of an image may be given by its name, such as `seed` or `guidance_scale`.
"""

import base64
import re
from collections.abc import Mapping
from time import time
from typing import Any, cast, get_args

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ldm.errors import UserError
from ldm.io.image_metadata import ImageFormat
from ldm.io.json_files import parse_json
from ldm.web.form import read_settings, read_weights
from ldm.web.own_api import image_path, json_object, service_of
from ldm.web.queue import Job
from ldm.web.served_model import ServedModel
from ldm.web.service import Asked, Service, client_of, raise_error, text_of

OWN_NAMES = re.compile(r"dall-e-\d|gpt-image-[\w.-]+|chatgpt-image-[\w.-]+")
"""OpenAI's models, which clients name where they cannot be told otherwise: they stand for the first model."""

WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "quality": ("auto", "standard"),
    "style": ("vivid", "natural"),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "input_fidelity": ("low", "high"),
    "stream": (False,),
    "partial_images": (0,),
}
"""OpenAI's fields that have no counterpart here, with the values that ask for nothing else."""

FORMAT_FIELDS = ("output_format", "output_compression")
FORMATS = get_args(ImageFormat)
"""The values of output_format."""

NAMES = {"n": "num_images"}
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


async def generations(request: Request) -> Response:
    """Images from a prompt."""
    service, given = service_of(request), await json_object(request)
    model = read_model(service, given.get("model"))
    settings, weights, warnings = read_fields(service, given)
    if "prompt" not in given:
        raise UserError("prompt is missing", 'send such as {"prompt": "a red apple"}')
    kind, quality = read_format(given)
    prompt = text_of(given, "prompt")
    own: dict[str, Any] = {"lora_weights": weights, "model": model, "file_format": kind, "quality": quality}
    asked = Asked(prompt, settings, **own)
    return await answered(request, service, asked, given, warnings)


async def edits(request: Request) -> Response:
    """An image changed: where its mask, or the image itself, is transparent; or as a whole, if neither is."""
    service = service_of(request)
    async with request.form(max_files=4, max_fields=80, max_part_size=2**20) as form:
        texts = {key: value for key, value in form.multi_items() if not isinstance(value, UploadFile)}
        files = [
            (key, await value.read()) for key, value in form.multi_items() if isinstance(value, UploadFile)
        ]
    given = _typed(service, texts)
    model = read_model(service, given.get("model"))
    settings, weights, warnings = read_fields(service, given)
    photos = [data for key, data in files if key in ("image", "image[]")]
    masks = [data for key, data in files if key == "mask"]
    if len(photos) != 1 or len(masks) > 1:
        what = f"{len(photos)} images and {len(masks)} masks are given"
        raise UserError(what, "send one image as a file, and at most one mask")
    image, mask = await run_in_threadpool(_decoded, service, model, photos[0], masks[0] if masks else None)
    kind, quality = read_format(given)
    prompt = text_of(given, "prompt")
    own: dict[str, Any] = {"lora_weights": weights, "model": model, "file_format": kind, "quality": quality}
    asked = Asked(prompt, settings, image, mask, **own)
    return await answered(request, service, asked, given, warnings)


def _decoded(service: Service, model: ServedModel, photo: bytes, mask: bytes | None) -> tuple[Any, Any]:
    """The image and its mask: white where the mask is transparent, or where the image is, if there is no mask."""
    image = service.uploads.image(photo, "image")
    if model.task_of(("image", "mask")) is None:
        return image, None
    clear = service.uploads.image(
        photo if mask is None else mask, "image" if mask is None else "mask", "alpha"
    )
    if clear.getextrema() == (0, 0):
        if mask is None:
            return image, None
        return image, service.uploads.image(mask, "mask", "mask")  # opaque: white is what may change
    return image, clear


def _typed(service: Service, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a form, which are all text, as JSON would have them; settings that are text stay so."""
    texts = {"prompt", "model", "user", "size", "response_format", "output_format"}
    texts |= {name for name, field in service.kind.model_fields.items() if field.annotation is str}
    typed = {}
    for name, value in given.items():
        try:
            typed[name] = value if name in texts else parse_json(value)
        except ValueError:
            typed[name] = value
    return typed


def read_fields(
    service: Service, given: Mapping[str, Any]
) -> tuple[Any, tuple[float, ...] | None, list[str]]:
    """The settings in a request, the weights of LoRAs, and what had no effect.

    Raises:
        UserError: a field is wrong or unknown.
    """
    if given.get("response_format") not in (None, "b64_json", "url"):
        raise UserError(f"response_format is {given['response_format']!r:.40}", "it must be b64_json or url")
    warnings = [
        f"{name} {given[name]!r:.40} has no effect here"
        for name, harmless in WITHOUT_EFFECT.items()
        if given.get(name) not in (None, *harmless) and name != "stream"
    ]
    if given.get("stream") not in (None, *WITHOUT_EFFECT["stream"]):
        raise UserError(f"stream is {given['stream']!r:.40}", "only False is offered")
    if read_format(given)[0] == "png" and given.get("output_compression") not in (None, 100):
        warnings.append("output_compression has no effect on PNG files")
    own = {"prompt", "model", "size", "user", "response_format", "loras", *FORMAT_FIELDS, *WITHOUT_EFFECT}
    named = {NAMES.get(name, name): value for name, value in given.items() if name not in own}
    settings = read_settings({**named, **read_size(given.get("size"))}, service.kind)
    return settings, read_weights(given.get("loras")), warnings


def read_format(given: Mapping[str, Any]) -> tuple[ImageFormat, int | None]:
    """The format of the files that are asked for, and their quality, as of `ldm generate`.

    Raises:
        UserError: it is not offered, or its quality is out of range.
    """
    found = given.get("output_format") or "png"
    if found not in FORMATS:
        raise UserError(f"output_format is {found!r:.40}", f"it must be one of {', '.join(FORMATS)}")
    quality = given.get("output_compression")
    if quality is not None and (type(quality) is not int or not 0 <= quality <= 100):
        what = f"output_compression is {quality!r:.40}"
        raise UserError(what, "it must be a whole number from 0 to 100, the quality of JPEG and WebP")
    kept = None if found == "png" or quality is None else max(1, quality)
    return cast(ImageFormat, found), kept


def read_model(service: Service, name: Any) -> ServedModel:
    """The model that a request names; the first one of the server for OpenAI's own names, or if none is named.

    Raises:
        NotFound: it is not served here.
    """
    if name in (None, "") or (name not in service.models and OWN_NAMES.fullmatch(str(name))):
        return service.model
    return service.find_model(name)


def read_size(size: Any) -> dict[str, int]:
    """Such as `512x768`, width before height; `auto` leaves it to the model.

    Raises:
        UserError: it is something else.
    """
    if size in (None, "auto"):
        return {}
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is None:
        raise UserError(f"size is {size!r:.40}", "write width x height in pixels, such as 512x512, or auto")
    return {"width": int(found[1]), "height": int(found[2])}


async def answered(
    request: Request, service: Service, asked: Asked, given: Mapping[str, Any], warnings: list[str]
) -> Response:
    """The images that are asked for, when they are made."""
    job = await run_in_threadpool(service.submit, client_of(request), asked)
    await service.finish(job, request)
    raise_error(job)
    body: dict[str, Any] = {
        "created": int(time()),
        "output_format": asked.file_format,
        "data": await run_in_threadpool(images_of, request, job, given),
    }
    if warnings := warnings + job.warnings:
        body["warnings"] = warnings
    return JSONResponse(body)


def images_of(request: Request, job: Job, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The images as base64 or as URLs of this server; if nothing is asked for, as both."""
    place, wanted = f"{request.url.scheme}://{request.headers.get('host', '')}", given.get("response_format")
    found = []
    for image in job.images:
        encoded = base64.b64encode(image.data).decode("ascii")
        forms = {"b64_json": encoded, "url": f"{place}{image_path(job, image)}"}
        shown = {name: value for name, value in forms.items() if wanted in (None, name)}
        found.append({**shown, "seed": image.seed})
    return found


async def models(request: Request) -> Response:
    """The models of this server."""
    found = [
        {"id": name, "object": "model", "created": 0, "owned_by": "ldm"}
        for name in service_of(request).models
    ]
    return JSONResponse({"object": "list", "data": found})


ROUTES = [
    Route("/v1/models", models),
    Route("/v1/images/generations", generations, methods=["POST"]),
    Route("/v1/images/edits", edits, methods=["POST"]),
]
