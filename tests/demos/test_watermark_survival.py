"""The measurement of the watermark: what it counts as survived, and images that are made anew."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm import load_pipeline
from ldm.demos.watermark_survival import CHANGES, made_anew, markdown, survival
from tests.support.tiny_generate import save_model


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Two smooth textures of 256 pixels."""
    draws = np.random.default_rng(0).uniform(60, 200, (2, 16, 16, 3)).astype(np.uint8)
    return [Image.fromarray(each).resize((256, 256), Image.Resampling.BICUBIC) for each in draws]


def test_survival_counts_what_is_found_and_read(images: list[Image.Image]) -> None:
    changes = {
        "nothing": CHANGES["nothing"],
        "painted over": lambda image: Image.new("RGB", image.size, "grey"),
    }
    found = survival(images, changes)
    kept, lost = found["rows"]
    assert (kept["num_found"], kept["num_read"], lost["num_found"], lost["num_wrong"]) == (2, 2, 0, 0)
    assert found["psnr_db"]["least"] > 30
    lines = markdown({"survival": found}).splitlines()
    assert lines[2].startswith("| nothing | 2 (16% to 100%) | 2 (") and lines[3].startswith(
        "| painted over | 0 ("
    )


def test_an_image_made_anew_has_its_size_and_other_pixels(tmp_path: Path) -> None:
    save_model(tmp_path)
    change = made_anew(load_pipeline(tmp_path / "one", device="cpu"), 0.5)
    given = Image.new("RGB", (24, 16), "red")
    made = change(given)
    assert made.size == given.size and made.tobytes() != given.tobytes()
    assert change(given).tobytes() == made.tobytes()
