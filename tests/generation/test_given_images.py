"""`ldm generate --image --mask`: files and folders, in prompt files, and reproduced."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.cli.generate import _plan
from ldm.errors import UserError
from ldm.generation.given_images import with_images
from ldm.generation.job import GenerationJob, read_job
from ldm.generation.model_options import ModelOptions
from ldm.generation.output import Target
from ldm.generation.prompts import read_prompts
from ldm.models.generation_settings import GenerationSettings
from ldm.pipeline.batches import Prompt, list_images
from ldm.pipeline.input_images import read_inputs
from ldm.pipeline.record import INPUTS_VERSION, ImageRecord, write_png

WHITE = Image.new("L", (8, 4), 255)
NO_SETTINGS = dict.fromkeys(GenerationSettings.model_fields)


def photo(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 8, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, a text file, and masks for both."""
    (tmp_path / "masks").mkdir()
    for number, name in enumerate(("b.png", "a.jpg")):
        photo(number).save(tmp_path / name)
        WHITE.save(tmp_path / "masks" / f"{Path(name).stem}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def names(prompts: list[Prompt]) -> list[tuple[str, list[str]]]:
    return [(each.prompt, [Path(image.name).name for image in each.inputs.values()]) for each in prompts]


def test_a_folder_gives_every_prompt_every_image_by_name(folder: Path) -> None:
    prompts = [Prompt("x"), Prompt("y")]
    assert names(with_images(prompts, folder, None)) == [
        ("x", ["a.jpg"]), ("x", ["b.png"]), ("y", ["a.jpg"]), ("y", ["b.png"]),
    ]  # fmt: skip
    masked = with_images(prompts[:1], folder, str(folder / "masks"))
    assert names(masked) == [("x", ["a.jpg", "a.png"]), ("x", ["b.png", "b.png"])]
    one_mask = with_images(prompts[:1], folder, str(folder / "masks/a.png"))
    assert names(one_mask) == [("x", ["a.jpg", "a.png"]), ("x", ["b.png", "a.png"])]
    assert with_images(prompts, None, None) == prompts


def test_masks_and_images_that_are_missing(folder: Path) -> None:
    (folder / "masks/a.png").unlink()
    with pytest.raises(UserError, match=r"masks has no mask for a.jpg: put one there as a.png"):
        with_images([Prompt("x")], folder, str(folder / "masks"))
    shutil.copy(folder / "masks/b.png", folder / "masks/b.webp")
    with pytest.raises(UserError, match=r"masks has several masks for b.png"):
        with_images([Prompt("x")], folder / "b.png", str(folder / "masks"))
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no images"):
        with_images([Prompt("x")], folder / "empty", None)
    with pytest.raises(UserError, match="a mask is given without an image"):
        with_images([Prompt("x")], None, "alpha")


def test_a_prompt_file_names_images_beside_it(folder: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "x", "image": "a.jpg", "mask": "masks/a.png", "strength": 0.5},
        {"prompt": "y"},
    ]
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    prompts = read_prompts(file)
    assert names(prompts) == [("x", ["a.jpg", "a.png"]), ("y", [])]
    assert prompts[0].settings.given() == {"strength": 0.5}
    assert names(with_images(prompts, folder / "b.png", None)) == [
        ("x", ["a.jpg", "a.png"]),
        ("y", ["b.png"]),
    ]
    file.write_text(json.dumps({"prompt": "x", "image": 3}))
    with pytest.raises(UserError, match=r"line 1: image is 3: it must be the name of a file"):
        read_prompts(file)


def test_images_travel_to_other_processes_as_files(folder: Path) -> None:
    prompts = with_images([Prompt("x")], folder / "a.jpg", str(folder / "masks/a.png"))
    images = tuple(list_images(prompts))
    job = GenerationJob(images, Target(folder / "out"), ModelOptions())
    job.write(folder)
    assert read_job(folder) == job
    assert read_job(folder).images[0].inputs["mask"].open().size == (8, 4)


def made_from(folder: Path) -> Path:
    """A PNG that says that it was made from b.png and its mask."""
    inputs = read_inputs(folder / "b.png", folder / "masks/b.png")
    record = ImageRecord(
        record_version=INPUTS_VERSION,
        prompt="x",
        seed=3,
        settings=GenerationSettings(height=4, width=8, strength=0.5),
        model_id="emoji",
        task="blended-inpaint",
        inputs={name: each.record for name, each in inputs.items()},
    )
    write_png(folder / "made.png", photo(7), record)
    return folder / "made.png"


def test_reproducing_asks_for_the_images_again_and_refuses_others(folder: Path) -> None:
    made, mask = made_from(folder), str(folder / "masks/b.png")
    with pytest.raises(UserError, match=r"made with --image, 8 x 4 pixels .*again: --image FILE"):
        _plan([], None, (None, None), made, NO_SETTINGS)
    with pytest.raises(UserError, match=r"made with --mask, 8 x 4 pixels"):
        _plan([], None, (folder / "b.png", None), made, NO_SETTINGS)
    with pytest.raises(UserError, match=r"a.jpg is not the image that .*made.png was made from"):
        _plan([], None, (folder / "a.jpg", mask), made, NO_SETTINGS)
    photo(0).save(folder / "copy.bmp")  # the same pixels in another format
    _, (prompt,) = _plan([], None, (folder / "copy.bmp", mask), made, NO_SETTINGS)
    assert (prompt.prompt, prompt.settings.seed, prompt.settings.strength) == ("x", 3, 0.5)
