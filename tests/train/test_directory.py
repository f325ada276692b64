"""A run never writes over the user's files or among the images, and its report says how it uses them."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from ldm.config import validate
from ldm.errors import UserError
from ldm.io.folders import remove_leftovers
from tests.support.tiny_runs import AUTOENCODER, write_config, write_squares
from train.autoencoder import main
from train.run.directory import check_outputs
from train.settings.denoiser import DenoiserSettings


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put_code(run_dir: Path) -> None:
    (run_dir / "pipeline").mkdir(parents=True)
    (run_dir / "pipeline" / "my_code.py").write_text("precious")


def put_configuration(run_dir: Path) -> None:
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("precious: true")


def put_another_programs_run(run_dir: Path) -> None:
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("model: resnet\nprogram: mine")
    (run_dir / "metrics.jsonl").write_text('{"step": 1}\n')


def put_another_programs_lock(run_dir: Path) -> None:
    run_dir.mkdir()
    (run_dir / "run.lock").write_text("12345")
    (run_dir / "report.json").write_text("precious")


def put_file(run_dir: Path) -> None:
    run_dir.write_text("precious")


@pytest.mark.parametrize(
    ("put", "named"),
    [
        (put_code, "'pipeline'"),
        (put_configuration, "'config.yaml'"),
        (put_another_programs_run, "'config.yaml'"),
        (put_another_programs_lock, "'report.json'"),
        (put_file, "is a file"),
    ],
)
def test_a_folder_of_something_else_is_left_alone(
    put: Callable[[Path], None], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_squares(tmp_path / "data")
    put(tmp_path / "run")
    config = write_config(tmp_path / "config.yaml", AUTOENCODER, data, tmp_path / "run")
    before = everything(tmp_path)
    assert main([str(config)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: run_dir = {tmp_path / 'run'} ")
    assert named in line
    assert everything(tmp_path) == before


@pytest.mark.parametrize("run_dir", ["data/run", "data", "link/run"])
def test_nothing_is_written_among_the_images(
    run_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_squares(tmp_path / "data")
    (tmp_path / "link").symlink_to(data)
    config = write_config(tmp_path / "config.yaml", AUTOENCODER, data, tmp_path / run_dir)
    before = everything(tmp_path)
    assert main([str(config)]) == 2
    assert "error: run_dir = " in capsys.readouterr().err
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"run_dir": "masks/run"}, "run_dir = masks/run is inside the data"),
        ({"cache": {"folder": "data/cache"}}, "cache.folder = data/cache is inside the data"),
        ({}, None),
    ],
)
def test_neither_masks_nor_the_cache_are_forgotten(
    changed: dict[str, Any], named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "masks"):
        Path(name).mkdir()
    data = {"sources": [{"path": "data", "masks": "masks"}], "height": 16, "width": 16}
    tree = {
        "program": "denoiser",
        "base": "emoji",
        "run_dir": "run",
        "num_steps": 500,
        "data": data,
        **changed,
    }
    settings = validate(DenoiserSettings, tree)
    with pytest.raises(UserError, match=named) if named else nullcontext():
        check_outputs(settings)


def test_a_report_made_beforehand_may_lie_there(tmp_path: Path) -> None:
    data = write_squares(tmp_path / "data")
    (tmp_path / "run" / "data_report").mkdir(parents=True)
    (tmp_path / "run" / "lost+found").mkdir()  # the run's directory may be a disk of its own
    config = write_config(tmp_path / "config.yaml", AUTOENCODER, data, tmp_path / "run")
    assert main([str(config)]) == 0


def test_only_leftovers_of_ours_are_cleared_away(tmp_path: Path) -> None:
    for name in (".old-photos", ".tmp-notes.txt", ".old-step-000001-0a1b2c3d", ".tmp-a.json-0a1b2c3d"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".old-photos",
        ".tmp-notes.txt",
        "step-000001",
    ]


def test_the_report_of_a_run_says_what_it_holds_out(tmp_path: Path) -> None:
    data = write_squares(tmp_path / "data")
    config = write_config(tmp_path / "config.yaml", AUTOENCODER, data, tmp_path / "run")
    assert main([str(config), "data.holdout_fraction=0.4"]) == 0
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    held_out = [fate["sample_id"] for fate in report["samples"] if fate["held_out"]]
    assert (report["num_found"], report["num_used"], report["num_held_out"]) == (7, 7, len(held_out))
    assert 0 < len(held_out) < 7
    assert "of the used are held out" in (tmp_path / "run" / "data_report.html").read_text()
