"""The images that a model card shows: drawn by the model, written one by one, and together in a grid."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.config import read_yaml
from ldm.export.export_source import ExportSource
from ldm.io.files import write_bytes
from ldm.io.images import image_grid
from ldm.io.redaction import public_text
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import write_png

FOLDER = "samples"
GRID = f"{FOLDER}/grid.png"
CURVES = f"{FOLDER}/curves.png"

PROMPTS = (
    "a red apple", "a cat", "a rocket", "a sunflower", "a slice of pizza", "a house", "a butterfly", "a guitar",
)  # fmt: skip
"""For a model without a run and without a new token."""

_COLUMNS, _SIDE_PX = 4, 256


@dataclass(frozen=True)
class SampleImage:
    """An image that the model made.

    Attributes:
        settings: as `Pipeline.generate` returns them; they are written into the file.
    """

    prompt: str
    image: Image.Image
    settings: Mapping[str, Any] | None = None


def draw_samples(source: ExportSource, number: int) -> list[SampleImage]:
    """Draw `number` images of `sample_prompts`. The first round of prompts has seed 0, the next one 1.

    Raises:
        UserError: the run's settings are damaged.
    """
    if number < 1:
        return []
    prompts = sample_prompts(source)[:number]
    num_rounds = -(-number // len(prompts))
    pipeline = Pipeline(source.weights(), model_id=source.model_id, folder=source.folder)
    made = pipeline.generate(prompts, seed=0, num_images=num_rounds, progress=False)
    order = [prompt * num_rounds + turn for turn in range(num_rounds) for prompt in range(len(prompts))]
    return [
        SampleImage(prompts[index // num_rounds], made.images[index], made.settings[index])
        for index in order[:number]
    ]


def sample_prompts(source: ExportSource) -> Sequence[str]:
    """The run's preview prompts; otherwise one with the model's new token, or `PROMPTS`."""
    settings = read_yaml(source.run / "config.yaml") if source.run else {}
    if found := (settings.get("preview") or {}).get("prompts"):
        return [str(prompt) for prompt in found]
    if source.adapter is not None and source.adapter.kind == "embedding":
        return [f"a picture of {source.adapter.settings['token']}"]
    return PROMPTS


def write_samples(folder: Path, samples: Sequence[SampleImage]) -> list[str]:
    """Write the images, and a grid if there are several; returns the names of the single files.

    Only the pixels of an image are written, and its settings if it has any.
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


def draw_grid(samples: Sequence[SampleImage]) -> Image.Image:
    """All images at about 256 px a side with their prompts below; small ones are enlarged by a whole factor."""
    shown = [_resized(sample.image) for sample in samples]
    captions = [public_text(sample.prompt) for sample in samples]
    return image_grid(shown, min(_COLUMNS, len(shown)), gap_px=6, captions=captions)


def _resized(image: Image.Image) -> Image.Image:
    longest = max(image.size)
    factor = _SIDE_PX / longest if longest > _SIDE_PX else _SIDE_PX // longest
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return _pixels(image).resize(size, Image.Resampling.LANCZOS)


def _pixels(image: Image.Image) -> Image.Image:
    """The image without its file's metadata."""
    return Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())


def _write(path: Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    _pixels(image).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
