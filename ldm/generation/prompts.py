"""What is to be made: prompts, each with the settings it names, from arguments or from a file."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from ldm.config import Settings, checked_by, validate
from ldm.data.sources.metadata import decode_utf8
from ldm.diffusion.guidance import check_interval
from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.errors import UserError, unknown_name
from ldm.pipeline.settings import LARGEST_SEED, PRESETS
from ldm.types import MAX_PROMPT_CHUNKS


def check_scheduler(name: str) -> None:
    """Refuse a sampler that is unknown, or that needs a package which is absent.

    Raises:
        UserError: naming the nearest sampler, or the package.
    """
    if name not in SCHEDULERS:
        raise unknown_name("scheduler", name, SCHEDULERS)
    entry = SCHEDULERS[name]
    if not entry.available:
        raise UserError(f"scheduler {name!r} needs {entry.requires}", f"pip install {entry.requires}")


class PictureSettings(Settings):
    """How a picture is made, apart from its prompt; None is left open, for the model's defaults."""

    negative_prompt: str | None = Field(None, description="what the picture should not show")
    seed: int | None = Field(
        None, strict=True, ge=0, le=LARGEST_SEED, description="of the prompt's first picture"
    )
    num_images: int | None = Field(
        None, strict=True, ge=1, description="pictures of this prompt, the i-th with seed + i"
    )
    num_inference_steps: int | None = Field(None, strict=True, ge=1, description="sampling steps")
    guidance_scale: float | None = Field(
        None, ge=0, description="how strongly to follow the prompt; 1 is not"
    )
    guidance_rescale: float | None = Field(None, ge=0, le=1, description="takes back over-exposure, 0 to 1")
    guidance_interval: Annotated[tuple[float, float] | None, checked_by(check_interval)] = Field(
        None, description="where guidance is used: rising fractions of the steps, or falling noise levels"
    )
    deep_features_every: int | None = Field(
        None, ge=1, description="the UNet's deep levels are computed at every n-th step"
    )
    scheduler: Annotated[str | None, checked_by(check_scheduler)] = Field(
        None, description="the sampler's short name"
    )
    karras: bool | None = Field(None, description="space the noise levels as Karras et al. 2022")
    max_prompt_chunks: int | None = Field(
        None,
        ge=1,
        le=MAX_PROMPT_CHUNKS,
        description="contexts of the text encoder that a long prompt may fill",
    )
    height: int | None = Field(None, ge=1, description="pixels")
    width: int | None = Field(None, ge=1, description="pixels")

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, given: Any) -> Any:
        """`preset` stands for settings by name; those that are named themselves win."""
        if not isinstance(given, dict) or "preset" not in given:
            return given
        named = {key: value for key, value in given.items() if key != "preset"}
        try:
            return {**preset_settings(given["preset"]), **{k: v for k, v in named.items() if v is not None}}
        except UserError as error:
            raise ValueError(str(error)) from None

    @field_validator("prompt", "negative_prompt", check_fields=False)
    @classmethod
    def _is_text(cls, text: str | None) -> str | None:
        try:
            (text or "").encode()
        except UnicodeEncodeError:  # bytes of an argument, or half of a surrogate pair in JSON
            raise ValueError("it holds what is no character: write it as UTF-8") from None
        if "\0" in (text or ""):
            raise ValueError("it holds the character 0: leave it out")
        return text

    def given(self) -> dict[str, Any]:
        """The settings that are not left open."""
        return self.model_dump(exclude_none=True)


class Prompt(PictureSettings):
    """One prompt and the settings it names."""

    prompt: str

    def over(self, base: PictureSettings) -> "Prompt":
        """This prompt, with what it leaves open taken from `base`."""
        return Prompt(**{**base.given(), **self.given()})


def preset_settings(name: str | None) -> dict[str, Any]:
    """The settings that a preset stands for; without a name, none.

    Raises:
        UserError: there is no such preset.
    """
    if name is None:
        return {}
    if not isinstance(name, str) or name not in PRESETS:
        raise unknown_name("preset", str(name), PRESETS)
    return dict(PRESETS[name])


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, in order; `-` is standard input, as text.

    A `.jsonl` file has one JSON object a line: `prompt`, and any of `PictureSettings`. Any other file is
    text, a prompt a line, without surrounding blanks; a line that starts with `#` is a comment. Empty lines
    are passed over.

    Raises:
        UserError: the file is missing, not UTF-8 (the byte is named) or without prompts, or a line is wrong.
    """
    # Not splitlines(): a prompt may hold U+2028 or U+0085.
    lines = list(enumerate(_text_of(path).replace("\r", "\n").split("\n"), start=1))
    read = _jsonl_prompts if path.suffix.lower() == ".jsonl" else _text_prompts
    prompts = list(read(path, lines))
    if not prompts:
        raise UserError(f"{path} has no prompts", "write one a line")
    return prompts


def _text_of(path: Path) -> str:
    if str(path) == "-":
        return decode_utf8(path, sys.stdin.buffer.read())
    if not path.exists():
        raise UserError(
            f"{path} is not there", "check the name of the file with the prompts, or give - to read them"
        )
    return decode_utf8(path)


def _text_prompts(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[Prompt]:
    for _, line in lines:
        text = line.strip()
        if text and not text.startswith("#"):
            yield Prompt(prompt=text)


def _jsonl_prompts(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[Prompt]:
    for number, line in lines:
        if line.strip():
            yield validate(Prompt, _json_object(line, f"{path}, line {number}"), f"{path}, line {number}")


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error})", 'write {"prompt": "...", "seed": 1}') from None
    if not isinstance(value, dict):
        raise UserError(f"{place}: not a JSON object", 'write {"prompt": "...", "seed": 1}')
    return value
