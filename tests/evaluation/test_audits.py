"""Audits: planted copies of training images are found, and what an autoencoder loses is measured."""

import json
import math
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.data.sample import FileImage, Sample
from ldm.evaluation.autoencoder_audit import GREY_8, GREY_16, read_original
from ldm.evaluation.memorisation import audit, copied, nearest_by_features, nearest_by_hash, threshold
from ldm.evaluation.reconstruction import at_8_bits, detail_ratio, scores, summary, worst
from tests.support.tiny_generate import save_model
from tests.support.tiny_images import photo


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG_16_COLOUR = (  # Pillow cannot write one
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
    + _chunk(b"IDAT", zlib.compress((b"\0" + bytes(range(96))) * 16))
    + _chunk(b"IEND", b"")
)


def features(number: int, seed: int, dim: int = 16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hashes = torch.randint(-(2**62), 2**62, (number,), generator=generator)
    return {"features": torch.randn(number, dim, generator=generator), "hashes": hashes}


def test_copies_are_found_and_other_images_are_not() -> None:
    training, fresh = features(400, 0), features(100, 1)
    generated = {name: torch.cat([training[name][:50], fresh[name]]) for name in training}
    generated["features"][:50] += 0.05 * torch.randn(50, 16, generator=torch.Generator().manual_seed(2))
    planted = {**training, "features": training["features"] + 0.05}
    found = audit(generated, training, planted)
    assert found.is_copy[:50].all()
    assert found.is_copy[50:].sum() <= 4  # 1 % of false alarms are expected
    assert found.features.index[:50].tolist() == list(range(50))
    assert found.planted_found == 1.0
    assert found.false_alarms <= 0.01
    facts = found.to_dict()
    assert facts["low"] <= facts["share"] <= facts["high"]
    assert set(found.order()[:50]) == set(range(50))


def test_the_threshold_lets_the_given_share_pass() -> None:
    distances = torch.arange(200.0)
    assert (distances < threshold(distances, 0.01)).sum() == 2
    assert (distances < threshold(distances, 0.001)).sum() == 0
    tied = torch.zeros(200)
    assert (tied < threshold(tied, 0.01)).sum() == 0  # equal images do not make an alarm of everything


def test_an_image_is_not_its_own_nearest() -> None:
    training = features(20, 0)
    itself = nearest_by_features(training["features"], training["features"])
    assert itself.index.tolist() == list(range(20))
    others = nearest_by_features(training["features"], training["features"], but_itself=True)
    assert all(i != j for i, j in enumerate(others.index.tolist()))
    bits = nearest_by_hash(torch.tensor([0b1011]), torch.tensor([0, 0b1010, -1]))
    assert (int(bits.index[0]), float(bits.distance[0])) == (1, 1.0)


def test_a_planted_copy_is_another_image_that_looks_the_same() -> None:
    image = photo(64, 64).resize((8, 8)).resize((64, 64), Image.Resampling.BICUBIC)
    for number in range(4):
        copy = copied(image, number)
        assert copy.size == image.size
        assert copy.tobytes() != image.tobytes()


def test_a_planted_copy_is_shifted_by_the_same_share_of_any_size() -> None:
    """A pixel is much in a small image."""
    for side in (32, 512):
        ramp = (
            Image.linear_gradient("L").resize((side, side)).convert("RGB")
        )  # from black at the top to white
        copy = copied(ramp, 3)
        brightness = [sum(each.convert("L").tobytes()) / side**2 for each in (ramp, copy)]
        # a 64th of the slope, on average half of that: 2 levels, or 1.5 as brightening rounds down
        assert 0.7 < brightness[1] / 1.06 - brightness[0] < 2.3


# The autoencoder


def smooth_images(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(number, 3, 8, 8, generator=generator) - 0.5
    noise = torch.rand(number, 3, 32, 32, generator=generator) - 0.5
    return torch.nn.functional.interpolate(small, 32, mode="bilinear") + 0.3 * noise


def test_lost_detail_is_seen_in_the_fine_octaves_only() -> None:
    images = smooth_images(3)
    half = torch.nn.functional.avg_pool2d(images, 2)
    blurred = torch.nn.functional.interpolate(half, scale_factor=2, mode="bilinear")
    ratio = detail_ratio(images, blurred)
    assert torch.allclose(detail_ratio(images, images), torch.ones_like(ratio))
    assert torch.allclose(detail_ratio(images, images / 2), torch.full_like(ratio, 0.25))
    assert (ratio[:, 0] > 0.8).all() and (ratio[:, -1] < 0.35).all()
    assert (ratio.diff(dim=1) < 0).all()
    assert detail_ratio(torch.zeros(1, 3, 32, 32), images[:1]).isnan().all()


def test_a_colour_shift_is_measured_in_levels_and_the_worst_come_first() -> None:
    images = smooth_images(12)
    redder = images.clone()
    redder[:, 0] += 2 / 127.5
    redder[5] += 0.3
    found = scores(images, redder)
    assert found.colour_shift[0].tolist() == pytest.approx([2.0, 0.0, 0.0], abs=1e-4)
    assert next(worst(found)) == 5
    numbers = summary(found)
    assert numbers["red_shift"]["num_images"] == 12
    assert numbers["psnr_db"]["low"] < numbers["psnr_db"]["value"] < numbers["psnr_db"]["high"]
    assert summary(scores(images[:3], redder[:3]))["psnr_db"]["low"] is None


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("audit")
    (root / "data").mkdir()
    for number in range(12):
        photo(seed=number).save(root / f"data/{number:02d}.png")
        (root / f"data/{number:02d}.txt").write_text(f"image {number}")
    return save_model(root / "model"), root / "data"


# Sources of 16 bits, and of one channel


def save_grey(path: Path, values: NDArray[np.integer[Any]]) -> Sample:
    Image.fromarray(values).save(path)
    return Sample(path.name, FileImage(path), ("scan",))


def scan(height: int = 32, width: int = 32) -> NDArray[np.uint16]:
    """Grey values of 16 bits, smooth and with every remainder of 257."""
    y, x = np.mgrid[:height, :width]
    return (1000 + 1500 * y + 301 * x).astype(np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_difference_of_one_level_of_16_bits_is_seen(tmp_path: Path, suffix: str) -> None:
    first = read_original(save_grey(tmp_path / f"a.{suffix}", scan()), 32, 32)
    second = read_original(save_grey(tmp_path / f"b.{suffix}", scan() + np.uint16(1)), 32, 32)
    assert first.kind == second.kind == GREY_16
    found = scores(first.pixels[None], second.pixels[None], torch.tensor([True]))
    assert float(found.psnr[0]) == pytest.approx(20 * math.log10(65535), abs=0.05)
    assert found.colour_shift[0].tolist() == pytest.approx([255 / 65535] * 3, rel=1e-2)
    assert torch.equal(at_8_bits(first.pixels), at_8_bits(at_8_bits(first.pixels)))


def test_the_floor_of_8_bits_is_that_of_rounding(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 65536, (64, 64), dtype=np.uint16)
    deep = read_original(save_grey(tmp_path / "deep.png", drawn), 64, 64)
    assert deep.floor_db == pytest.approx(20 * math.log10(255) + 10 * math.log10(12), abs=0.2)
    flat = read_original(save_grey(tmp_path / "flat.png", (drawn // 257).astype(np.uint8)), 64, 64)
    assert flat.kind == GREY_8 and math.isnan(flat.floor_db)
    assert float(at_8_bits(flat.pixels).sub(flat.pixels).abs().max()) < 1e-6  # its levels are those of 8 bits
    smaller = read_original(Sample("deep.png", FileImage(tmp_path / "deep.png"), ("scan",)), 32, 32)
    assert smaller.pixels.shape == (3, 32, 32) and smaller.pixels.abs().max() <= 1


def test_a_tint_of_a_grey_image_is_a_colour_shift_and_no_error() -> None:
    grey = torch.linspace(-0.5, 0.5, 32 * 32).reshape(1, 1, 32, 32).expand(2, 3, -1, -1)
    tinted = grey + torch.tensor([0.1, 0.0, -0.1])[:, None, None]
    found = scores(grey, tinted, torch.tensor([True, False]))
    assert found.psnr[0] > 100 > 30 > found.psnr[1]
    assert found.colour_shift[0].tolist() == pytest.approx([12.75, 0, -12.75], abs=1e-3)
    assert torch.equal(found.colour_shift[0], found.colour_shift[1])


def test_the_audit_counts_its_sources_and_shows_the_floor(places: tuple[Path, Path], tmp_path: Path) -> None:
    model, _ = places
    data = tmp_path / "data"
    data.mkdir()
    save_grey(data / "deep.png", scan())
    save_grey(data / "flat.png", (scan() // 257).astype(np.uint8))
    photo().save(data / "colour.png")
    (data / "wide.png").write_bytes(PNG_16_COLOUR)
    arguments = ["autoencoder", str(model), "--data", str(data), "--output", str(tmp_path / "out")]
    size = ["--height", "16", "--width", "16"]
    done = CliRunner().invoke(app, ["audit", *arguments, *size], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "out/audit.json").read_text())
    assert facts["sources"] == {kind: 1 for kind in facts["sources"]} and len(facts["sources"]) == 4
    assert "1 16-bit grey" in done.output and "16-bit colour, read at 8 bits" in done.output
    floor = facts["numbers"]["psnr_db_of_16_bit_rounded_to_8"]
    assert floor["num_images"] == 1 and 55 < floor["value"] < 65
    assert facts["numbers"]["psnr_db_of_16_bit"]["value"] < floor["value"]


def test_both_commands_write_a_page(places: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = places
    for command, extra in (
        ("memorisation", ["--num-inference-steps", "1", "-n", "3"]),
        ("autoencoder", ["--height", "16", "--width", "16"]),
    ):
        arguments = [command, str(model), "--data", str(data), "--output", str(tmp_path / command), *extra]
        done = CliRunner().invoke(app, ["audit", *arguments, "--json", "--quiet"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout) == json.loads((tmp_path / command / "audit.json").read_text())
        assert "data:image/jpeg" in (tmp_path / command / "audit.html").read_text()
    assert "must be multiples" in _refused("autoencoder", model, data, tmp_path / "no", "--height", "15")
    assert "inside the data" in _refused("autoencoder", model, data, data / "out")
    assert "inside the data" in _refused("memorisation", model, data, data / "out")


def _refused(command: str, model: Path, data: Path, output: Path, *extra: str) -> str:
    arguments = [command, str(model), "--data", str(data), "--output", str(output), *extra]
    done = CliRunner().invoke(app, ["audit", *arguments], catch_exceptions=False)
    assert done.exit_code == 2
    assert not output.exists()
    return done.stderr


def test_an_audit_that_finds_few_planted_copies_says_so(places: tuple[Path, Path], tmp_path: Path) -> None:
    """Equal images are each other's nearest, so no threshold tells copies from others."""
    model, data = places
    (tmp_path / "data").mkdir()
    for number in range(4):
        shutil.copy(data / "00.png", tmp_path / f"data/{number}.png")
        (tmp_path / f"data/{number}.txt").write_text("image")
    arguments = [
        "memorisation",
        str(model),
        "--data",
        str(tmp_path / "data"),
        "--output",
        str(tmp_path / "out"),
    ]
    short = ["--num-inference-steps", "1", "-n", "1"]
    done = CliRunner().invoke(app, ["audit", *arguments, *short], catch_exceptions=False)
    assert done.exit_code == 0 and "find only 0.00 of the planted copies" in done.stderr
