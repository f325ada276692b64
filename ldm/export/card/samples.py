"""The images that a model card shows: drawn by the model, written one by one, and together in a grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.config import read_yaml
from ldm.export.card.task_words import words_for
from ldm.export.export_source import ExportSource
from ldm.io.images import image_grid
from ldm.io.png import write_chunks
from ldm.io.redaction import public_text
from ldm.models.parts import ModelParts
from ldm.pipeline.pipeline import Pipeline, load_pipeline
from ldm.pipeline.record import write_png
from ldm.provenance.marks import EDITED, MADE, mark_texts
from ldm.tasks import find_task

FOLDER = "samples"
GRID = f"{FOLDER}/grid.png"
CURVES = f"{FOLDER}/curves.png"

INPUT_NOTE = "The image given was made by the model that comes with OpenLDM."
INPUT_PROMPT, INPUT_SEED = "a red apple", 7

_COLUMNS, _SIDE_PX = 4, 256


@dataclass(frozen=True)
class SampleImage:
    """An image that the model made.

    Attributes:
        settings: as `Pipeline.generate` returns them; they are written into the file.
        given: what the model made it from, a masked part in grey; None for a prompt alone.
    """

    prompt: str
    image: Image.Image
    settings: Mapping[str, Any] | None = None
    given: Image.Image | None = None


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
    given: dict[str, Any] = sample_inputs(source.parts)
    made = pipeline.generate(prompts, seed=0, num_images=num_rounds, progress=False, **given)
    order = [prompt * num_rounds + turn for turn in range(num_rounds) for prompt in range(len(prompts))]
    return [
        SampleImage(prompts[index // num_rounds], made.images[index], made.settings[index], _shown(given))
        for index in order[:number]
    ]


def sample_inputs(parts: ModelParts) -> dict[str, Image.Image]:
    """The images that the samples are made from, by the names of `generate`; none for a model from text.

    The image is one of the embedded model, so that nothing of the training data is published. The mask is a box.
    """
    names = find_task(parts.task).given
    if not names:
        return {}
    size = size_of_inputs(parts)
    drawn = load_pipeline("emoji", device="cpu").generate(INPUT_PROMPT, seed=INPUT_SEED, progress=False)
    mask = Image.new("L", size, 0)
    mask.paste(255, (size[0] // 4, size[1] // 4, max(1, 3 * size[0] // 4), max(1, 3 * size[1] // 4)))
    found = {"image": drawn.images[0].resize(size, Image.Resampling.LANCZOS), "mask": mask}
    return {name: found[name] for name in names}


def size_of_inputs(parts: ModelParts) -> tuple[int, int]:
    """The width and height of the images that the model is given for images of its own size."""
    factor = parts.autoencoder.pixels_per_latent if find_task(parts.task).enlarges else 1
    return max(1, parts.defaults.width // factor), max(1, parts.defaults.height // factor)


def _shown(given: Mapping[str, Image.Image]) -> Image.Image | None:
    """The image given, its masked part in grey."""
    if "mask" not in given:
        return given.get("image")
    return Image.composite(Image.new("RGB", given["image"].size, "grey"), given["image"], given["mask"])


def sample_prompts(source: ExportSource) -> Sequence[str]:
    """The run's preview prompts; otherwise one with the model's new token, or prompts for its task."""
    settings = read_yaml(source.run / "config.yaml") if source.run else {}
    if found := (settings.get("preview") or {}).get("prompts"):
        return [str(prompt) for prompt in found]
    if source.adapter is not None and source.adapter.kind == "embedding":
        return [f"a picture of {source.adapter.settings['token']}"]
    return words_for(source.parts.task).prompts


def write_samples(folder: Path, samples: Sequence[SampleImage]) -> list[str]:
    """Write the images, and a grid if there are several; returns the names of the single files.

    Only the pixels of an image are written, and its settings if it has any.
    """
    names = [f"{FOLDER}/{number:02d}.png" for number in range(1, len(samples) + 1)]
    for name, sample in zip(names, samples, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        if sample.settings is None:
            _write(folder / name, sample.image, mark_texts(MADE if sample.given is None else EDITED))
        else:
            write_png(folder / name, _pixels(sample.image), sample.settings, overwrite=True)
    if len(samples) > 1 or any(sample.given for sample in samples):
        edited = any(sample.given for sample in samples)
        _write(folder / GRID, draw_grid(samples), mark_texts(EDITED if edited else MADE))
    return names


def draw_grid(samples: Sequence[SampleImage]) -> Image.Image:
    """All images at about 256 px a side with their prompts below; small ones are enlarged by a whole factor.

    An image that was made from another one has it on its left.
    """
    cells = [cell for sample in samples for cell in _cells(sample)]
    shown, captions = [_resized(image) for image, _ in cells], [caption for _, caption in cells]
    return image_grid(shown, min(_COLUMNS, len(shown)), gap_px=6, captions=captions)


def _cells(sample: SampleImage) -> list[tuple[Image.Image, str]]:
    before = [] if sample.given is None else [(sample.given, "given")]
    return [*before, (sample.image, public_text(sample.prompt))]


def _resized(image: Image.Image) -> Image.Image:
    longest = max(image.size)
    factor = _SIDE_PX / longest if longest > _SIDE_PX else _SIDE_PX // longest
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return _pixels(image).resize(size, Image.Resampling.LANCZOS)


def _pixels(image: Image.Image) -> Image.Image:
    """The image without its file's metadata."""
    return Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())


def _write(path: Path, image: Image.Image, texts: Mapping[str, str]) -> None:
    write_chunks(path, _pixels(image), texts, overwrite=True)
