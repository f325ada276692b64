"""What an image says about itself: `ImageRecord`, in its file as JSON for us and as A1111's text for other tools."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image
from pydantic import Field

from ldm.config import Settings, validate
from ldm.errors import UserError, warn
from ldm.io.files import write_new
from ldm.io.image_metadata import ImageFormat, image_format, read_metadata
from ldm.io.image_writing import RECORD_KEY, WrittenMetadata, encode_image, record_text
from ldm.io.json_files import parse_json
from ldm.io.png import is_written_here, read_chunk
from ldm.io.redaction import public_file_name
from ldm.models.adapters.embedding_files import UsedEmbedding
from ldm.models.adapters.fuse import UsedLora
from ldm.models.control.hints import REFERENCE
from ldm.models.generation_settings import TEXT_TO_IMAGE, GenerationSettings, Setting, settings_of
from ldm.models.settings_reading import parse_settings
from ldm.pipeline.control_images import UsedControl
from ldm.pipeline.input_images import InputRecord
from ldm.provenance.marks import written_metadata
from ldm.provenance.safety import SafetyNote

RECORD_VERSION = 2
"""Raised when a record changes so that older programs misread it. A record without a version has version 1."""

INPUTS_VERSION = 3
"""The version of the record of an image that was made from other images, or with settings that records leave out at
their default: older programs would ignore them."""

A1111_KEYS = (
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Seed",
    "Size",
    "Model hash",
    "Model",
)
"""The order that A1111 writes its own keys in; ours follow."""


class ImageRecord(Settings):
    """Everything needed to make an image again, without any path: images are shown to others.

    Attributes:
        seed: None for an image made from given noise, which no seed makes again: see `latents_hash`.
        settings: all settings, none of them left open.
        model_id: "emoji", a Hub id, or the name of a folder or file.
        weights_hash: of the model, or None for one that was never saved.
        model_parts: `ldm.models.identity.Identity.image_parts`; None in the record of an older version.
        engine: what the denoiser ran on.
        dtype: what the model computed in.
        versions: of the libraries, by name.
        latents_hash: SHA-256 of the initial noise, if that was given.
        step_noise_seed: of the noise that a stochastic sampler adds at each step, or that a low-resolution image got,
            if the initial noise was given.
        task: what was done with the images given; empty for text-to-image.
        inputs: what identifies the images that it was made from, by name.
        controls: the images that controlled it, and the networks that read them.
        guide_hash: of the weights of the second model of autoguidance.
        refiner_hash: of the weights of the second model that finished the sampling.
        embeddings: tokens that were added to the model's own.
        safety: what a classifier said of the image, if one was asked.
    """

    record_version: int = RECORD_VERSION
    prompt: str = ""
    seed: int | None = None
    settings: GenerationSettings = GenerationSettings()
    model_id: str | None = None
    weights_hash: str | None = None
    model_parts: dict[str, str] | None = None
    loras: tuple[UsedLora, ...] = ()
    engine: str = "torch"
    dtype: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    ldm_version: str | None = None
    compiled: bool = False
    decoded_in_tiles: bool = False
    encoded_in_tiles: bool = False
    latents_hash: str | None = None
    step_noise_seed: int | None = None
    task: str = ""
    inputs: dict[str, InputRecord] = Field(default_factory=dict)
    controls: tuple[UsedControl, ...] = ()
    guide_hash: str | None = None
    refiner_hash: str | None = None
    embeddings: tuple[UsedEmbedding, ...] = ()
    safety: SafetyNote | None = None

    @property
    def has_maps(self) -> bool:
        """Whether control images other than references controlled it."""
        return any(each.kind != REFERENCE for each in self.controls)

    def to_json(self) -> dict[str, Any]:
        """The record as one flat object, ready for JSON, with the settings among the other keys."""
        left_out = {name for name in OPTIONAL if not getattr(self, name) and getattr(self, name) != 0}
        left_out |= {name for name in SWITCHES if not getattr(self, name)}
        besides = {"control": self.has_maps, "refiner": self.refiner_hash is not None}
        written = self.settings.written(
            self.task or TEXT_TO_IMAGE, [name for name, used in besides.items() if used]
        )
        flat = self.model_dump(mode="json", exclude={"settings", *left_out}) | written
        return with_public_names(flat)

    @classmethod
    def from_json(
        cls,
        given: Mapping[str, Any],
        *,
        where: str = "",
        kind: type[GenerationSettings] = GenerationSettings,
    ) -> "ImageRecord":
        """A record of this version or an older one. Keys that are unknown here are ignored.

        Raises:
            UserError: a value is of the wrong type or out of range.
        """
        recorded = {name: setting for name, setting in settings_of(kind) if setting.recorded}
        task = given.get("task") or TEXT_TO_IMAGE
        left_out = {
            name: kind.model_fields[name].default
            for name, setting in recorded.items()
            if setting.recorded_if_changed and setting.is_for(task)
        }
        named = left_out | {key: given[key] for key in recorded.keys() & given.keys()}
        settings = parse_settings(named, kind, where=where)
        own = {key: given[key] for key in cls.model_fields.keys() & given.keys()}
        return validate(cls, {"record_version": 1, **own, "settings": settings}, where=where)


def with_public_names(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A flat record whose names of models and LoRAs have no private parts, as newer programs write them."""
    return {**flat, **{key: _public_names(flat[key]) for key in NAMED if flat.get(key)}}


def _public_names(named: Any) -> Any:
    """The name of a model, or LoRAs with their names, without private parts; ids on the Hub stay."""
    if isinstance(named, list):
        return [{**each, "name": _public_names(each.get("name"))} for each in named]
    return public_file_name(named) if isinstance(named, str) and "/" not in named else named


REDACTED = "redacted"
"""A key of a record that `ldm export` removed private text from."""
NAMED = ("model_id", "loras", "controls")
"""What has the name of a folder or a file of the user."""
OPTIONAL = (
    "model_parts", "loras", "latents_hash", "step_noise_seed", "task", "inputs", "controls", "guide_hash",
    "refiner_hash", "embeddings", "safety",
)  # fmt: skip
"""Left out of the JSON if there is none."""
SWITCHES = ("compiled", "decoded_in_tiles", "encoded_in_tiles")
"""Left out of the JSON if false."""


def write_png(
    path: str | os.PathLike[str],
    image: Image.Image,
    record: ImageRecord | Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Write an image as PNG, with its record in the text chunks `parameters` and `ldm`, and with the marks of
    `ldm.provenance.marks`.

    The file appears whole or not at all.

    Args:
        record: or a mapping of the same keys and anything else that JSON can hold, without paths.

    Raises:
        UserError: `path` exists and `overwrite` is false, the disk is full, or the folder is not writable.
    """
    write_new(path, encode_with_record(image, record), overwrite=overwrite)


def encode_with_record(
    image: Image.Image,
    record: ImageRecord | Mapping[str, Any],
    file_format: ImageFormat = "png",
    quality: int | None = None,
) -> bytes:
    """The bytes of an image file with its record and the marks of `ldm.provenance.marks`.

    Args:
        record: as in `write_png`.
        quality: as in `ldm.io.image_writing.encode_image`.
    """
    return encode_image(image, _metadata(record), file_format, quality)


def _metadata(record: ImageRecord | Mapping[str, Any]) -> WrittenMetadata:
    kind = type(record.settings) if isinstance(record, ImageRecord) else GenerationSettings
    flat = record.to_json() if isinstance(record, ImageRecord) else dict(record)
    return written_metadata(flat, infotext(flat, kind))


def has_record(path: str | os.PathLike[str]) -> bool:
    """Whether a file has a record of ours, even if its pixels are damaged; an empty file counts, too."""
    return is_written_here(path, RECORD_KEY) or (
        _format_of(path) in ("jpeg", "webp") and record_text(read_metadata(path)) is not None
    )


def _format_of(path: str | os.PathLike[str]) -> ImageFormat | None:
    """None also for a file that cannot be read."""
    try:
        return image_format(path)
    except OSError:
        return None


def _record_text(path: str | os.PathLike[str]) -> str | None:
    if _format_of(path) in ("jpeg", "webp"):
        return record_text(read_metadata(path))
    return read_chunk(path, RECORD_KEY)


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record in a PNG, JPEG or WebP as a flat mapping, as it was written.

    Raises:
        UserError: the file is not a readable image, or has no record of ours.
    """
    text = _record_text(path)
    if text is None:
        raise UserError(
            f"{path}: has no `ldm` settings",
            "use an image as `ldm generate` wrote it; a grid of several has none",
        )
    try:
        settings = parse_json(text)
    except ValueError as error:
        raise UserError(
            f"{path}: its `ldm` settings are broken ({error})", "use the original file"
        ) from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: its `ldm` settings are not a JSON object", "use the original file")
    return settings


def read_record(
    path: str | os.PathLike[str], kind: type[GenerationSettings] = GenerationSettings
) -> ImageRecord:
    """The record in a PNG, JPEG or WebP.

    Raises:
        UserError: the file is not a readable image, has no record of ours, or the record is damaged.

    Warns:
        LdmWarning: a later version of the program wrote it, or private text was removed from it.
    """
    settings = read_settings(path)
    record = ImageRecord.from_json(settings, where=str(path), kind=kind)
    if settings.get(REDACTED):
        warn(f"{path}: private text was removed from its prompt or from names: the same image may not result")
    if record.record_version > INPUTS_VERSION:
        written = f"ldm {record.ldm_version}" if record.ldm_version else "a later version of this program"
        warn(f"{path} was written by {written}, whose records are newer: settings unknown here are ignored")
    return record


def infotext(settings: Mapping[str, Any], kind: type[GenerationSettings] = GenerationSettings) -> str:
    """A flat record in A1111's form: prompt, `Negative prompt: ...`, then one line of `key: value` pairs."""
    lines = [str(settings.get("prompt", ""))]
    if settings.get("negative_prompt"):
        lines.append(f"Negative prompt: {settings['negative_prompt']}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in _pairs(settings, kind)))
    return "\n".join(lines[1:] if lines[0] == "" else lines)


def _pairs(settings: Mapping[str, Any], kind: type[GenerationSettings]) -> Iterator[tuple[str, str]]:
    """A1111's keys in A1111's order, then ours; keys missing in the record are left out."""
    weights_hash, model = settings.get("weights_hash"), settings.get("model_id")
    height, width, version = (settings.get(key) for key in ("height", "width", "ldm_version"))
    pairs = {
        "Size": None if width is None or height is None else f"{width}x{height}",
        "Model hash": None if weights_hash is None else str(weights_hash)[:10],
        # Readers split a quoted name wrongly, so A1111 removes what would need the quotes.
        "Model": None if model is None else str(model).replace(",", "").replace(":", ""),
    }
    pairs |= {
        setting.infotext: _infotext_value(setting, settings.get(name))
        for name, setting in settings_of(kind)
        if setting.infotext
    }
    ours = [key for key in pairs if key not in A1111_KEYS]
    pairs |= {"RNG": "CPU", "Version": None if version is None else f"ldm {version}"}
    for key in (*A1111_KEYS, *ours, "RNG", "Version"):
        if (value := pairs.get(key)) is not None:
            yield key, value


def _infotext_value(setting: Setting, value: Any) -> str | None:
    """7.0 as "7", 7.5 as "7.5"."""
    shown = None if value is None else setting.infotext_value(value)
    if shown is None:
        return None
    return str(int(shown)) if isinstance(shown, float) and shown.is_integer() else str(shown)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n]", value) else value
