"""Prompts, each with its own settings, from arguments or from a file."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.data.sources.metadata import decode_utf8
from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.errors import UserError
from ldm.generation.given_images import controls_of
from ldm.io.json_files import parse_json
from ldm.models.generation_settings import GenerationSettings
from ldm.models.setting_checks import check_text
from ldm.models.settings_reading import parse_settings
from ldm.pipeline.batches import Prompt
from ldm.pipeline.input_images import ALPHA, InputImage, read_inputs

NOT_SETTINGS = ("prompt", "image", "mask", "control", "reference")
"""The keys of a prompt that are not settings."""

_EXAMPLE = 'write {"prompt": "...", "seed": 1}'


def parse_prompt(
    given: dict[str, Any],
    *,
    where: str = "",
    folder: Path = Path(),
    kind: type[GenerationSettings] = GenerationSettings,
) -> Prompt:
    """A prompt, its settings and its images from one flat mapping.

    Args:
        folder: where the names of the images are looked up.

    Raises:
        UserError: the prompt is missing or not text, a setting is wrong or needs a package that is not installed, or an
            image cannot be used.
    """
    settings = parse_settings(
        {key: given[key] for key in given if key not in NOT_SETTINGS}, kind, where=where
    )
    check_installed(settings, where=where)
    if "prompt" not in given:
        raise UserError(f"{_prefix(where)}prompt is missing", _EXAMPLE)
    text = given["prompt"]
    if not isinstance(text, str):
        raise UserError(f"{_prefix(where)}prompt is {text!r}", "it must be text")
    try:
        controls = controls_of(given, folder)
        return Prompt(check_text(text), settings, _inputs(given, folder), controls)
    except UserError as error:
        raise UserError(f"{_prefix(where)}{error.what}", error.hint) from None


def _inputs(given: Mapping[str, Any], folder: Path) -> dict[str, InputImage]:
    """The images of a prompt; `alpha` as a mask is not a file."""
    image, mask = (given.get(name) for name in ("image", "mask"))
    for name, value in (("image", image), ("mask", mask)):
        if not isinstance(value, str | None):
            raise UserError(f"{name} is {value!r}", "it must be the name of a file")
    return read_inputs(
        None if image is None else folder / image,
        mask if mask is None or mask == ALPHA else folder / mask,
    )


def check_installed(settings: GenerationSettings, *, where: str = "") -> None:
    """Refuse a scheduler that needs a package which is not installed, before any model is loaded.

    Raises:
        UserError: naming the package.
    """
    entry = SCHEDULERS.get(settings.scheduler)  # None for the model's own
    if entry is not None and not entry.available:
        what = f"{_prefix(where)}scheduler {settings.scheduler!r} needs {entry.requires}"
        raise UserError(what, f"pip install {entry.requires}")


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""


def read_prompts(path: Path, kind: type[GenerationSettings] = GenerationSettings) -> list[Prompt]:
    """The prompts of a file, in order; `-` is standard input, as text.

    A `.jsonl` file has one JSON object a line: `prompt`, any field of `GenerationSettings`, and `image`, `mask`,
    `control` and `reference`, files relative to the folder of the prompt file. Any other file is text with one prompt a
    line, stripped of surrounding blanks; a line that starts with `#` is a comment. Empty lines are skipped.

    Raises:
        UserError: the file is missing, not UTF-8 (the byte is named) or without prompts, or a line is wrong.
    """
    # Not splitlines(): a prompt may contain U+2028 or U+0085.
    lines = list(enumerate(_text_of(path).replace("\r", "\n").split("\n"), start=1))
    if path.suffix.lower() == ".jsonl":
        prompts = [
            parse_prompt(
                _json_object(line, f"{path}, line {number}"),
                where=f"{path}, line {number}",
                folder=path.parent,
                kind=kind,
            )
            for number, line in lines
            if line.strip()
        ]
    else:
        prompts = [Prompt(text, kind()) for text in _text_prompts(lines)]
    if not prompts:
        raise UserError(f"{path} has no prompts", "write one a line")
    return prompts


def _text_of(path: Path) -> str:
    if str(path) == "-":
        return decode_utf8(path, sys.stdin.buffer.read())
    if not path.exists():
        raise UserError(
            f"{path} does not exist", "check the name of the prompt file, or give - for standard input"
        )
    return decode_utf8(path)


def _text_prompts(lines: Sequence[tuple[int, str]]) -> Iterator[str]:
    for _, line in lines:
        text = line.strip()
        if text and not text.startswith("#"):
            yield text


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({error})", _EXAMPLE) from None
    if not isinstance(value, dict):
        raise UserError(f"{place}: not a JSON object", _EXAMPLE)
    return value
