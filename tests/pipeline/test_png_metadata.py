"""PNGs with their settings inside: the exact text, the round trip, and disks that fail."""

import errno
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.errors import UserError
from ldm.pipeline.record import infotext, read_settings, write_png

SETTINGS: dict[str, Any] = {
    "prompt": "a red apple",
    "negative_prompt": "blurry",
    "seed": 123,
    "num_inference_steps": 20,
    "guidance_scale": 7.5,
    "guidance_rescale": 0.0,
    "scheduler": "euler_a",
    "karras": False,
    "height": 384,
    "width": 512,
    "model_id": "emoji",
    "weights_hash": "0123456789abcdef",
    "engine": "torch",
    "dtype": "float32",
    "versions": {"torch": "2.15.0", "diffusers": "0.42.1"},
    "ldm_version": "0.1.0",
}
PROMPTS = [
    "",
    "a red apple",
    "two\nlines, with: colons",
    'he said "no, never", \\ and left',
    "猫 🙂 é ﷽",
    "tail\n",
    "  spaces  ",
    "a\r\nb",
    "Steps: 20, Sampler: Euler, Seed: 4, Size: 1x1",
    "a\nSteps: 20, Sampler: Euler, Seed: 4, Size: 1x1",
]


def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8))


def test_infotext_is_a1111s() -> None:
    assert infotext(SETTINGS) == (
        "a red apple\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 123, Size: 512x384, Model hash: 0123456789, "
        "Model: emoji, RNG: CPU, Version: ldm 0.1.0"
    )


def test_infotext_with_everything_else() -> None:
    more = {"negative_prompt": "", "karras": True, "guidance_scale": 7.0, "guidance_rescale": 0.7}
    more |= {"scheduler": "dpmpp_2m", "model_id": "user/na:me,d"}
    assert infotext(SETTINGS | more) == (
        "a red apple\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 123, Size: 512x384, "
        "Model hash: 0123456789, Model: user/named, Guidance rescale: 0.7, RNG: CPU, Version: ldm 0.1.0"
    )


def test_the_seed_zero_is_a_seed() -> None:
    assert ", Seed: 0, Size: " in infotext(SETTINGS | {"seed": 0})


def test_values_that_need_quotes_have_them() -> None:
    text = infotext(SETTINGS | {"ldm_version": '1: "猫", b'})
    assert text.endswith(r'Version: "ldm 1: \"猫\", b"')
    assert infotext(SETTINGS | {"ldm_version": "1:2"}).endswith('Version: "ldm 1:2"')


def test_an_empty_prompt_has_no_line() -> None:
    assert infotext(SETTINGS | {"prompt": ""}).startswith("Negative prompt: blurry\nSteps: 20")
    assert infotext(SETTINGS | {"prompt": "", "negative_prompt": ""}).startswith("Steps: 20")


def test_scheduler_names() -> None:
    assert len({entry.title for entry in SCHEDULERS.values()}) == len(SCHEDULERS)
    for name, title in {"euler": "Euler", "dpmpp_2m": "DPM++ 2M", "my_own": "my_own"}.items():
        assert f"Sampler: {title}, " in infotext(SETTINGS | {"scheduler": name})


@pytest.mark.parametrize("prompt", PROMPTS[1:])
@pytest.mark.parametrize("negative_prompt", PROMPTS[1:])
def test_the_infotext_contains_prompts_unchanged(prompt: str, negative_prompt: str) -> None:
    text = infotext(SETTINGS | {"prompt": prompt, "negative_prompt": negative_prompt})
    settings = infotext(SETTINGS).rpartition("\n")[2]
    assert text == f"{prompt}\nNegative prompt: {negative_prompt}\n{settings}"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_settings_and_pixels_come_back_from_the_file(tmp_path: Path, prompt: str) -> None:
    path = tmp_path / "a.png"
    settings = SETTINGS | {"prompt": prompt}
    write_png(path, image(), settings)
    assert read_settings(path) == settings
    with Image.open(path) as found:
        found.load()
        assert found.text["parameters"] == infotext(settings)  # type: ignore[attr-defined]
        assert np.array_equal(np.asarray(found), np.asarray(image()))


def test_the_ldm_chunk_is_sorted_json_and_nothing_names_the_path(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", image(), dict(reversed(SETTINGS.items())))
    write_png(tmp_path / "b.png", image(), SETTINGS)
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "b.png").read_bytes()
    assert json.dumps(SETTINGS, sort_keys=True).encode() in data
    assert str(tmp_path).encode() not in data and b"a.png" not in data


def test_read_settings_refuses_files_without(tmp_path: Path) -> None:
    image().save(tmp_path / "plain.png")
    image().save(tmp_path / "a.jpg")
    write_png(tmp_path / "cut.png", image(), SETTINGS)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-60])
    faults = {
        "plain.png": "no `ldm` settings",
        "a.jpg": "no `ldm` settings",
        "cut.png": "not a readable PNG",
    }
    for name, message in (faults | {"absent.png": "no such file"}).items():
        with pytest.raises(UserError, match=f"{name}: .*{message}"):
            read_settings(tmp_path / name)


@pytest.mark.parametrize(("text", "message"), [("{", "are broken"), ("[1]", "not a JSON object")])
def test_read_settings_refuses_broken_ones(tmp_path: Path, text: str, message: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("ldm", text)
    image().save(tmp_path / "a.png", pnginfo=chunks)
    with pytest.raises(UserError, match=message):
        read_settings(tmp_path / "a.png")


def test_an_existing_file_is_kept_unless_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"a\.png exists already: choose another name"):
        write_png(path, image(), SETTINGS)
    assert path.read_bytes() == b"mine"
    write_png(path, image(), SETTINGS, overwrite=True)
    assert read_settings(path) == SETTINGS
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"a\.png: the disk is full: free some space"):
        write_png(tmp_path / "a.png", image(), SETTINGS)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def at_most_100_bytes_a_file() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_quota_leaves_the_older_image(tmp_path: Path) -> None:
    """The operating system refuses to write more."""
    (tmp_path / "a.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"a\.png: the disk is full"), at_most_100_bytes_a_file():
        write_png(tmp_path / "a.png", image(), SETTINGS, overwrite=True)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.png", b"mine")]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "a.png", Path("/proc/a.png"), tmp_path / ("x" * 300 + ".png")):
        with pytest.raises(UserError, match="cannot be written") as error:
            write_png(place, image(), SETTINGS)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="exists already"):
        write_png(tmp_path / "folder", image(), SETTINGS, overwrite=True)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file", "folder"]
