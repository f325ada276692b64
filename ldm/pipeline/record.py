"""A PNG that says how it was made: for people's tools in A1111's text form, for us as JSON."""

import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.errors import UserError
from ldm.io.files import write_bytes

_NEGATIVE = "Negative prompt: "


def write_png(
    path: str | os.PathLike[str], image: Image.Image, settings: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Write an image as PNG, with its settings in the text chunks `parameters` and `ldm`.

    The file appears whole or not at all.

    Args:
        settings: prompt, negative_prompt, seed (this image's own), num_inference_steps, guidance_scale,
            guidance_rescale, scheduler, karras, height, width, model_id, weights_hash, ldm_version and
            anything else that JSON can hold. No paths: pictures are shown to others.

    Raises:
        UserError: `path` exists and `overwrite` is false, the disk is full, or the folder is not writable.
    """
    path = Path(path)
    chunks = PngInfo()
    chunks.add_text("parameters", infotext(settings))
    chunks.add_text("ldm", json.dumps(dict(settings), sort_keys=True))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    try:
        if path.is_dir() or (path.exists() and not overwrite):
            raise UserError(f"{path} exists already", "choose another name or move it away")
        write_bytes(path, buffer.getvalue())
    except OSError as error:  # a name too long, a file where a folder should be, a broken disk
        raise UserError(f"{path} cannot be written ({error.strerror})", "choose another place") from error


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings that `write_png` stored in a picture.

    Raises:
        UserError: the file is no readable PNG, or has no settings of ours.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            assert isinstance(image, PngImageFile)
            text = image.text.get("ldm")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file", "name a PNG made by `ldm generate`") from error
    except Exception as error:  # a decoder of foreign bytes raises nearly anything
        raise UserError(f"{path}: not a readable PNG ({error})", "name one made by `ldm generate`") from error
    if text is None:
        raise UserError(
            f"{path}: holds no `ldm` settings",
            "use a picture as `ldm generate` wrote it; a grid of several has none",
        )
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{path}: its `ldm` settings are broken ({error})", "use the original file"
        ) from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: its `ldm` settings are no JSON object", "use the original file")
    return settings


def infotext(settings: Mapping[str, Any]) -> str:
    """Settings in A1111's form: prompt, `Negative prompt: ...`, then one line of `key: value` pairs."""
    lines = [str(settings.get("prompt", ""))]
    if settings.get("negative_prompt"):
        lines.append(_NEGATIVE + str(settings["negative_prompt"]))
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in _pairs(settings)))
    return "\n".join(lines[1:] if lines[0] == "" else lines)


def _pairs(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A1111's keys in A1111's order; what the settings do not hold is left out."""
    scheduler, weights_hash = settings.get("scheduler"), settings.get("weights_hash")
    height, width, model = settings.get("height"), settings.get("width"), settings.get("model_id")
    version = settings.get("ldm_version")
    pairs = {
        "Steps": settings.get("num_inference_steps"),
        "Sampler": _title(str(scheduler)),
        "Schedule type": "Karras" if settings.get("karras") else None,
        "CFG scale": settings.get("guidance_scale"),
        "Seed": settings.get("seed"),
        "Size": None if width is None or height is None else f"{width}x{height}",
        "Model hash": None if weights_hash is None else str(weights_hash)[:10],
        # Readers split a quoted name wrongly, so A1111 drops what would need the quotes.
        "Model": None if model is None else str(model).replace(",", "").replace(":", ""),
        "Guidance rescale": settings.get("guidance_rescale") or None,
        "RNG": "CPU",
        "Version": None if version is None else f"ldm {version}",
    }
    return ((key, _number(value)) for key, value in pairs.items() if value is not None)


def _title(scheduler: str) -> str:
    """What A1111 calls a scheduler; a name that it has none for stands for itself."""
    return SCHEDULERS[scheduler].title if scheduler in SCHEDULERS else scheduler


def _number(value: Any) -> str:
    """7.0 as "7", 7.5 as "7.5"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n]", value) else value
