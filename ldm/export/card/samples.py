"""The pictures that a card shows: each alone, and all in one grid with their prompts."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.export.card.markdown import escaped
from ldm.io.files import write_bytes
from ldm.io.images import image_grid
from ldm.io.redaction import redacted_prose
from ldm.pipeline.record import write_png

FOLDER = "samples"
GRID = f"{FOLDER}/grid.png"
CURVES = f"{FOLDER}/curves.png"

_COLUMNS, _SIDE_PX = 4, 256


@dataclass(frozen=True)
class SamplePicture:
    """A picture that the model made.

    Attributes:
        settings: how it was made, as `Pipeline.generate` gives them; they are written into the file.
    """

    prompt: str
    image: Image.Image
    settings: Mapping[str, Any] | None = None


def write_samples(folder: Path, samples: Sequence[SamplePicture]) -> list[str]:
    """Write the pictures, and their grid where there are several; returns the names of the single ones.

    Of an image nothing but its pixels is written, and its settings where they are given.
    """
    names = [f"{FOLDER}/{number:02d}.png" for number in range(1, len(samples) + 1)]
    for name, sample in zip(names, samples, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        if sample.settings is None:
            _write(folder / name, sample.image)
        else:
            write_png(folder / name, _pixels(sample.image), sample.settings, overwrite=True)
    if len(samples) > 1:
        _write(folder / GRID, draw_grid(samples))
    return names


def draw_grid(samples: Sequence[SamplePicture]) -> Image.Image:
    """All pictures at about 256 px a side, prompts below; small ones are enlarged by a whole factor."""
    shown = [_at_shown_size(sample.image) for sample in samples]
    captions = [redacted_prose(sample.prompt) for sample in samples]
    return image_grid(shown, min(_COLUMNS, len(shown)), gap_px=6, captions=captions)


def samples_section(samples: Sequence[SamplePicture], names: Sequence[str]) -> str:
    """The pictures as Markdown; empty where there are none."""
    if len(samples) < 2:
        shown = zip(samples, names, strict=True)
        return "\n\n".join(f"![{escaped(redacted_prose(one.prompt))}]({name})" for one, name in shown)
    prompts = "; ".join(escaped(redacted_prose(sample.prompt)) for sample in samples)
    return f"![pictures that the model made]({GRID})\n\nThe prompts: {prompts}."


def _at_shown_size(image: Image.Image) -> Image.Image:
    longest = max(image.size)
    factor = _SIDE_PX / longest if longest > _SIDE_PX else _SIDE_PX // longest
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return _pixels(image).resize(size, Image.Resampling.LANCZOS)


def _pixels(image: Image.Image) -> Image.Image:
    """The image without anything that its file said beside the pixels."""
    return Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())


def _write(path: Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    _pixels(image).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
