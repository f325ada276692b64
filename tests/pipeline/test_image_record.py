"""`ImageRecord`: what an image says about itself, in this version and the one before."""

import warnings
from pathlib import Path

import pytest
from PIL import Image

from ldm.errors import LdmWarning, UserError
from ldm.generation.reproduce import read_original
from ldm.io.png import read_chunk
from ldm.models.adapters.fuse import UsedLora
from ldm.models.generation_settings import GenerationSettings
from ldm.pipeline.record import (
    INPUTS_VERSION,
    RECORD_VERSION,
    ImageRecord,
    infotext,
    read_record,
    read_settings,
    write_png,
)

OLD = Path(__file__).parents[1] / "fixtures" / "version_1"
SETTINGS = {**GenerationSettings().recorded(), "scheduler": "euler", "guidance_interval": (5, 0.3)}
FULL = ImageRecord(
    prompt="a red apple",
    seed=7,
    settings=GenerationSettings(**SETTINGS),
    model_id="emoji",
    weights_hash="ab" * 32,
    loras=(UsedLora("style", "cd" * 32, 0.5),),
    dtype="float32",
    versions={"torch": "2.11"},
    ldm_version="0.1.0",
    step_noise_seed=0,
)


def write(path: Path, record: ImageRecord | dict[str, object]) -> Path:
    write_png(path, Image.new("RGB", (4, 4)), record)
    return path


def test_a_record_comes_back_from_its_png(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", FULL)
    assert read_record(path) == FULL
    assert read_settings(path) == FULL.to_json()


def test_the_json_is_flat_and_leaves_out_what_does_not_apply() -> None:
    flat = FULL.to_json()
    assert flat["record_version"] == RECORD_VERSION == 2
    assert (flat["scheduler"], flat["guidance_interval"], flat["seed"]) == ("euler", [5.0, 0.3], 7)
    assert flat["step_noise_seed"] == 0, "a seed of zero is one"
    assert flat["loras"] == [{"name": "style", "sha256": "cd" * 32, "weight": 0.5}]
    assert not {"settings", "num_images", "preset", "latents_hash", "compiled", "decoded_in_tiles"} & set(
        flat
    )
    assert "loras" not in ImageRecord().to_json()
    assert ImageRecord(compiled=True).to_json()["compiled"] is True


@pytest.mark.parametrize(
    ("name", "prompt", "seed", "loras"),
    [
        ("pictures/0001-red-s3.png", "red", 3, ["lora-kohya"]),
        ("pictures-emoji/0001-a-red-apple-s7.png", "a red apple", 7, []),
    ],
)
def test_a_png_of_version_1_is_read(name: str, prompt: str, seed: int, loras: list[str]) -> None:
    record = read_record(OLD / name)
    assert (record.record_version, record.prompt, record.seed) == (1, prompt, seed)
    assert [lora.name for lora in record.loras] == loras
    assert record.settings.num_inference_steps == 3
    asked = read_original(OLD / name).prompt.settings
    assert asked.given() == {**record.settings.given(), "seed": seed}
    flat = read_settings(OLD / name)
    assert record.to_json() == {**flat, "record_version": 1}
    assert infotext(record.to_json()) == read_chunk(OLD / name, "parameters"), "byte for byte"


def test_a_later_version_is_read_with_a_warning(tmp_path: Path) -> None:
    later = {**FULL.to_json(), "record_version": INPUTS_VERSION + 1, "unheard_of": 1, "ldm_version": "9.0"}
    path = write(tmp_path / "a.png", later)
    with pytest.warns(LdmWarning, match=r"a\.png was written by ldm 9\.0, whose records are newer"):
        record = read_record(path)
    assert record.settings == FULL.settings
    with warnings.catch_warnings():
        warnings.simplefilter("error", LdmWarning)
        read_record(write(tmp_path / "b.png", FULL))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scheduler": "eular"}, r"a\.png: unknown scheduler 'eular'"),
        ({"num_inference_steps": 0}, r"a\.png: num_inference_steps is 0"),
        ({"loras": "style"}, r"a\.png: loras = 'style'"),
        ({"seed": "seven"}, r"a\.png: seed = 'seven'"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = write(tmp_path / "a.png", {**FULL.to_json(), **change})
    with pytest.raises(UserError, match=said):
        read_record(path)


def test_a_seed_out_of_range_is_refused_when_the_image_is_reproduced(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", {**FULL.to_json(), "seed": -1})
    with pytest.raises(UserError, match=r"a\.png: seed is -1"):
        _ = read_original(path).prompt
