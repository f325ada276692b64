"""`ldm generate --resume`: finished images are kept, missing ones are made, and no other file is mistaken for ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ldm.cli.app import app
from ldm.generation.finished import image_fault
from ldm.models.loading import source as model_source
from ldm.pipeline.batches import Batch
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import read_settings, write_png
from tests.support.tiny_generate import save_model

PROMPTS = ["a", "b", "c", "d"]
OPTIONS = ["--batch-size", "2", "--num-inference-steps", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(model_source.EMBEDDED, "emoji", model)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The prompts of every batch that is made from now on."""
    batches: list[list[str]] = []
    make = Pipeline.make_images

    def noting(self: Pipeline, groups: list[Batch], **options: Any) -> Any:
        batches.extend([image.prompt for image in group] for group in groups)
        return make(self, groups, **options)

    monkeypatch.setattr(Pipeline, "make_images", noting)
    return batches


def generate(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["generate", *OPTIONS, *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def finished(*arguments: object) -> list[Path]:
    """The paths that a successful call prints."""
    result = generate(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return [Path(line) for line in result.stdout.splitlines()]


def contents(paths: list[Path]) -> list[tuple[bytes, int]]:
    return [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]


def test_missing_images_are_made_bit_for_bit_and_the_rest_is_not_touched(made: list[list[str]]) -> None:
    paths = finished(*PROMPTS, "--grid")
    *before, (grid, _) = contents(paths)
    for gone in (paths[1], paths[-1]):
        gone.unlink()
    made.clear()
    assert finished(*PROMPTS, "--grid", "--resume") == paths
    assert made == [["a", "b"]]  # the whole batch, so that kernels see what they saw before
    assert paths[1].read_bytes() == before[1][0]
    kept = [contents([paths[i]])[0] for i in (0, 2, 3)]
    assert kept == [before[i] for i in (0, 2, 3)]
    assert paths[-1].read_bytes() == grid


def test_temporary_files_of_a_killed_call_are_removed_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = finished(*PROMPTS)
    folder = paths[0].parent

    class KilledError(BaseException):
        """Not an Exception, so no handler catches it: as close to being killed as a test gets."""

    def killed(self: Path, target: Path) -> None:
        raise KilledError

    paths[0].unlink()
    with monkeypatch.context() as at_renaming, pytest.raises(KilledError):
        at_renaming.setattr(Path, "replace", killed)
        at_renaming.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        generate(*PROMPTS, "--resume")
    others = folder / ".tmp-9999-of-another-call-s0.png-0a1b2c3d"
    others.touch()
    assert len(list(folder.glob(".tmp-*"))) == 2
    assert finished(*PROMPTS, "--resume") == paths
    assert list(folder.glob(".tmp-*")) == [others]


def test_when_all_is_finished_nothing_is_made_with_any_options(made: list[list[str]]) -> None:
    text = "--guidance-scale 3 --guidance-rescale 0.5 --negative-prompt blue --scheduler euler --karras"
    more = "--height 17 --width 24 --guidance-interval 0 0.5 --dtype bfloat16 --seed 3 --num-images 2"
    options = [*text.split(), *more.split()]
    first = generate("a", *options)
    assert first.exit_code == 0, first.stderr
    before = contents([Path(line) for line in first.stdout.splitlines()])
    made.clear()
    again = generate("a", *options, "--resume")
    assert (again.stdout, again.stderr, made) == (first.stdout, first.stderr, [])
    assert contents([Path(line) for line in again.stdout.splitlines()]) == before


def test_resuming_an_empty_folder_makes_everything(made: list[list[str]]) -> None:
    assert len(finished(*PROMPTS, "--resume")) == 4
    assert made == [["a", "b"], ["c", "d"]]


def test_an_image_of_another_version_is_finished(made: list[list[str]]) -> None:
    (path,) = finished("a")
    settings = {**read_settings(path), "ldm_version": "0.0.1", "versions": {"torch": "1.0"}}
    with Image.open(path) as image:
        write_png(path, image.copy(), settings, overwrite=True)
    made.clear()
    finished("a", "--resume")
    assert made == []


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 40] ^= 1
    path.write_bytes(data)


def lose_its_settings(path: Path) -> None:
    with Image.open(path) as image:
        image.copy().save(path)


def become_a_jpeg(path: Path) -> None:
    Image.new("RGB", (16, 16)).save(path, "JPEG")


def become_smaller(path: Path) -> None:
    write_png(path, Image.new("RGB", (8, 16)), read_settings(path), overwrite=True)


def have_other(**settings: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with Image.open(path) as image:
            write_png(path, image.copy(), {**read_settings(path), **settings}, overwrite=True)

    return change


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut short": (cut_short, ""),
    "a flipped bit": (flip_a_bit, ""),
    "no settings": (lose_its_settings, "has no `ldm` settings"),
    "a JPEG": (become_a_jpeg, "has no `ldm` settings"),
    "another size": (become_smaller, "has 8 x 16 pixels, not 16 x 16"),
    "other steps": (have_other(num_inference_steps=7), "num_inference_steps 7, not num_inference_steps 2"),
    "other weights": (have_other(weights_hash="0" * 64), "was made with weights_hash"),
    "a LoRA": (have_other(loras=[{"name": "x"}]), 'was made with loras [{"name": "x"}], not loras null'),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_damaged_or_foreign_file_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    expected = {"prompt": "a", "num_inference_steps": 2, "width": 16, "height": 16, "weights_hash": "1" * 64}
    write_png(path, Image.effect_noise((16, 16), 50).convert("RGB"), expected)
    assert image_fault(path, expected) is None
    spoil, words = FAULTS[name]
    spoil(path)
    fault = image_fault(path, expected) or ""
    assert fault.startswith(str(path))
    assert words in fault


def test_a_foreign_file_is_never_replaced(made: list[list[str]]) -> None:
    paths = finished(*PROMPTS, "--grid")
    lose_its_settings(paths[2])
    spoilt = contents(paths)
    made.clear()
    for options in (["--overwrite"], ["--resume", "--overwrite"]):
        refused = generate(*PROMPTS, *options)
        assert (refused.exit_code, refused.stdout, made) == (2, "", [])
        assert refused.stderr.startswith(
            f"error: {paths[2]} exists already, and was not written by this program"
        )
    lose_its_settings(paths[-1])
    for options in (["--overwrite"], ["--resume"]):
        assert generate("x", "--grid", *options).stderr.startswith(f"error: {paths[-1]} exists already, and ")
    assert contents(paths)[:-1] == spoilt[:-1]


def test_the_grid_of_another_call_is_not_replaced_by_resuming(made: list[list[str]]) -> None:
    (*_, grid) = finished("a", "b", "--grid")
    before = contents([grid])
    made.clear()
    for other in (["c"], ["a", "b", "--guidance-scale", "7"]):
        refused = generate(*other, "--grid", "--resume")
        assert (refused.exit_code, made) == (2, [])
        assert refused.stderr.startswith(f"error: {grid} shows the images of another call")
    assert contents([grid]) == before
    assert finished("a", "b", "--grid", "--resume")[-1] == grid
    assert contents([grid])[0][0] == before[0][0]
    finished("c", "--grid", "--overwrite")
    assert contents([grid])[0][0] != before[0][0]


def test_an_image_with_other_settings_is_replaced_only_with_overwrite(made: list[list[str]]) -> None:
    paths = finished(*PROMPTS)
    whole = contents(paths)
    have_other(num_inference_steps=7)(paths[2])
    spoilt = contents(paths)
    made.clear()
    refused = generate(*PROMPTS, "--resume")
    assert (refused.exit_code, refused.stdout, made) == (2, "", [])
    fault = f"{paths[2]} was made with num_inference_steps 7, not num_inference_steps 2"
    hint = "add --overwrite to make such images again, or give another --output"
    assert refused.stderr == f"error: {fault}: {hint}\n"
    assert contents(paths) == spoilt
    told = generate(*PROMPTS, "--resume", "--overwrite")
    assert (told.exit_code, made) == (0, [["c", "d"]])
    assert told.stderr == f"warning: made again: {fault}\n"
    assert [data for data, _ in contents(paths)] == [data for data, _ in whole]
    assert contents([paths[3]]) == [whole[3]]


def test_the_first_three_of_many_faults_are_named() -> None:
    paths = finished("a", "b", "c", "d", "e")
    for path in paths:
        lose_its_settings(path)
    (line,) = generate("a", "b", "c", "d", "e", "--resume").stderr.splitlines()
    assert [path.name in line for path in paths] == [True, True, True, False, False]
    assert "(and 2 more files)" in line


def test_a_folder_with_an_images_name_is_refused_at_once() -> None:
    Path("outputs/0001-a-s0.png").mkdir(parents=True)
    result = generate("a", "--resume", "--overwrite", "--model", "absent")
    assert "0001-a-s0.png exists already" in result.stderr


def test_every_bit_of_a_file_counts(tmp_path: Path) -> None:
    """One bit of each byte is flipped, and the file is refused."""
    path = tmp_path / "x.png"
    settings = {"prompt": "a", "width": 4, "height": 4}
    write_png(path, Image.new("RGB", (4, 4), "red"), settings)
    assert image_fault(path, settings) is None
    data = path.read_bytes()
    for place in range(len(data) - 12):  # the rest is the chunk that ends the file
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert image_fault(path, settings), f"byte {place}: {json.dumps(list(data[place : place + 8]))}"
