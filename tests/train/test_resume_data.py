"""Resuming a run whose data has changed is refused with the changes; a fork accepts it."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from ldm.cli.train import fork_overrides
from ldm.config import load_settings
from ldm.data.fingerprint import Fingerprint, decode_fingerprint
from ldm.errors import UserError
from ldm.io.files import write_manifest
from ldm.models.loading.model import save_parts
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import COMMON, write_squares
from train.data.read import TrainingData, read_data
from train.denoiser import DenoiserSettings
from train.denoiser import main as run_program
from train.run.run import Run


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps with a checkpoint after each: data/, masks/, run/ and run.yaml."""
    folder = tmp_path_factory.mktemp("pristine")
    data = write_squares(folder / "data")
    for path in sorted(data.glob("*.png")):
        (folder / "masks").mkdir(exist_ok=True)
        Image.new("L", (16, 16), 255).save(folder / "masks" / path.name)
    save_parts(make_sd1(folder.parent / "tokenizer"), folder.parent / "model")
    at = {"source": str(data), "masks": str(folder / "masks")}
    assert run_program([str(config(folder, "run", **at))]) == 0
    return folder


def config(folder: Path, name: str, source: str, masks: str) -> Path:
    data = {"sources": [{"path": source, "masks": masks}], "height": 16, "width": 16}
    settings = {
        "program": "denoiser",
        "trainable": "unet",
        "base": str(folder.parent / "model"),
        "preview": {"num_inference_steps": 1, "prompts": ["red"]},
        "run_dir": str(folder / name),
        "num_steps": 2,
        "save_every": 1,
        "data": data,
        "optim": {"num_warmup_steps": 0},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**COMMON, **settings}))
    return path


@pytest.fixture
def folder(pristine: Path) -> Path:
    """Restored to that state before each test, at the same path, which the settings contain."""
    saved = pristine.parent / "saved"
    if not saved.exists():
        shutil.copytree(pristine, saved)
    shutil.rmtree(pristine)
    shutil.copytree(saved, pristine)
    return pristine


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "data/metadata.jsonl").read_text().splitlines()]


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "data/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def paint(folder: Path, name: str, color: str) -> None:
    """Write an image of this colour with a white mask."""
    Image.new("RGB", (16, 16), color).save(folder / "data" / name)
    Image.new("L", (16, 16), 255).save(folder / "masks" / name)


def add(folder: Path) -> None:
    for name in ("white", "a\nb"):
        paint(folder, f"{name}.png", "white")
        write_rows(folder, [*rows(folder), {"file_name": f"{name}.png", "text": name}])


def remove(folder: Path) -> None:
    write_rows(folder, [row for row in rows(folder) if row["text"] != "red"])
    for kind in ("data", "masks"):
        (folder / kind / "red.png").unlink()


def edit_first_row(folder: Path, **values: Any) -> None:
    first, *others = rows(folder)
    write_rows(folder, [{**first, **values}, *others])


def black_out(folder: Path) -> None:
    mask = Image.new("L", (16, 16), 0)
    mask.putpixel((0, 0), 255)  # a sample whose mask is black everywhere is refused
    mask.save(folder / "masks/red.png")


def repaint(folder: Path) -> None:
    for path in (folder / "data").glob("*.png"):
        paint(folder, path.name, "white")


def much(folder: Path) -> None:
    edit_first_row(folder, text="crimson")
    write_rows(folder, [row for row in rows(folder) if row["text"] != "green"])
    for kind in ("data", "masks"):
        (folder / kind / "green.png").unlink()
    add(folder)


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "added": (add, "2 added ('white.png', 'a\\nb.png')"),
    "removed": (remove, "1 removed ('red.png')"),
    "another image": (lambda folder: paint(folder, "red.png", "white"), "1 changed ('red.png')"),
    "all other images": (repaint, "7 changed ('red.png', 'green.png', 'blue.png', ...)"),
    "a caption": (lambda folder: edit_first_row(folder, text="crimson"), "1 changed ('red.png')"),
    "a further caption": (lambda folder: edit_first_row(folder, captions=[]), "1 changed ('red.png')"),
    "what may be mirrored": (lambda folder: edit_first_row(folder, flip=False), "1 changed ('red.png')"),
    "a mask": (black_out, "1 changed ('red.png')"),
    "order": (lambda folder: write_rows(folder, rows(folder)[::-1]), "the same samples in another order"),
    "much": (much, "2 added ('white.png', 'a\\nb.png'), 1 removed ('green.png'), 1 changed ('red.png')"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_changed_data_is_refused_in_one_line_and_nothing_is_touched(
    folder: Path, change: Callable[[Path], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(folder / "run")
    change(folder)
    assert run_program([str(folder / "run.yaml"), "num_steps=3"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(
        f"error: the data has changed since {folder / 'run'} was started: {said}: restore the old"
    )
    assert "--fork NEW_DIR" in line
    assert files_of(folder / "run") == before


def files_of(run_dir: Path) -> dict[str, bytes]:
    """Every file of a run except its lock."""
    files = (path for path in run_dir.rglob("*") if path.is_file() and path.name != "run.lock")
    return {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in files}


def test_a_plan_refuses_what_the_run_would_refuse(folder: Path) -> None:
    settings = load_settings(DenoiserSettings, folder / "run.yaml")
    repaint(folder)
    with pytest.raises(UserError, match="7 changed"):
        read_data(Run(settings, planning=True), folder=folder / "memo")


def test_files_with_the_same_content_are_the_same_data(folder: Path) -> None:
    for path in (folder / "data").glob("*.png"):
        path.write_bytes(path.read_bytes())
        os.utime(path, ns=(10**18, 10**18))
    (folder / "data/notes.md").write_text("nobody trains on this")
    assert run_program([str(folder / "run.yaml"), "num_steps=3"]) == 0
    known = [(folder / f"run/checkpoints/step-00000{n}/data.json").read_bytes() for n in (2, 3)]
    assert known[0] == known[1]


def test_where_the_data_lies_is_no_part_of_its_fingerprint(folder: Path) -> None:
    first = survey(folder, "first", folder)
    for kind in ("data", "masks"):
        shutil.move(folder / kind, folder / f"elsewhere/{kind}")
    second = survey(folder, "second", folder / "elsewhere")
    assert first.fingerprint == second.fingerprint
    report = json.loads((folder / "run/data_report.json").read_text())
    assert report["fingerprint"] == first.fingerprint.hash


def survey(folder: Path, name: str, at: Path) -> TrainingData:
    """What a run on the data of a folder would train on, without an index from elsewhere."""
    made = config(folder, name, source=str(at / "data"), masks=str(at / "masks"))
    return read_data(Run(load_settings(DenoiserSettings, made)), folder=folder / f"memo-{name}")


def test_a_fork_accepts_other_data_and_holds_to_it_from_then_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_yaml = folder / "run.yaml"
    repaint(folder)
    fork = [str(run_yaml), *fork_overrides(run_yaml, [], folder / "fork")]
    assert run_program(fork) == 0
    assert "from the weights of" in capsys.readouterr().err
    assert run_program([*fork, "num_steps=3"]) == 0
    remove(folder)
    assert run_program([*fork, "num_steps=4"]) == 2
    assert f"the data has changed since {folder / 'fork'} was started: 1 removed" in capsys.readouterr().err


def test_without_a_checkpoint_the_data_may_change(folder: Path) -> None:
    shutil.rmtree(folder / "run/checkpoints")
    repaint(folder)
    assert run_program([str(folder / "run.yaml")]) == 0


def test_checkpoints_that_do_not_name_their_data_are_gone_on_from_with_a_word(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for checkpoint in (folder / "run/checkpoints").iterdir():
        (checkpoint / "data.json").unlink()
        write_manifest(checkpoint)
    repaint(folder)
    assert run_program([str(folder / "run.yaml"), "num_steps=3"]) == 0
    assert "do not record their training data, so it was not compared" in capsys.readouterr().err
    assert (folder / "run/checkpoints/step-000003/data.json").is_file()


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data.replace(b"red.png", b"bed.png")])
def test_a_damaged_fingerprint_is_passed_over_for_that_of_the_checkpoint_before(
    folder: Path, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    newest = folder / "run/checkpoints/step-000002/data.json"
    newest.write_bytes(damage(newest.read_bytes()))
    black_out(folder)
    assert run_program([str(folder / "run.yaml")]) == 2
    assert "1 changed ('red.png')" in capsys.readouterr().err
    shutil.rmtree(folder / "masks")
    shutil.copytree(folder.parent / "saved/masks", folder / "masks")
    assert run_program([str(folder / "run.yaml"), "num_steps=3"]) == 0
    assert "data.json has changed since it was written; going back to" in capsys.readouterr().err


def test_a_fingerprint_comes_back_from_its_file_as_it_was() -> None:
    known = Fingerprint({"b.png": "0" * 32, "\udc80 ü\n.png": "1" * 32, "a.png": "2" * 32})
    back = decode_fingerprint(known.encoded)
    assert back is not None and list(back.samples.items()) == list(known.samples.items())
    assert back.hash == known.hash != replace(known, samples=dict(sorted(known.samples.items()))).hash
    for wrong in (b"[]", b"\xff", b"{}", known.encoded.replace(b'"version": 1', b'"version": 2')):
        assert decode_fingerprint(wrong) is None
