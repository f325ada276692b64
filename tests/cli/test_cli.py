"""The command line as a whole: fast help, one-line errors, `info`, `doctor` and `data check`."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from PIL import Image
from typer.testing import CliRunner, Result

from ldm.cli.app import app
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import read_settings
from ldm.version import __version__
from tests.support.tiny_models import ZERO_SNR_SCHEDULER, make_sd2
from tests.support.tiny_runs import write_squares

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
COMMANDS = ["generate", "train", "info", "data", "doctor"]


def ldm(*arguments: object) -> Result:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *arguments], env=ENVIRONMENT, capture_output=True, text=True)


# Help and errors


def test_nothing_heavy_is_imported_for_the_help() -> None:
    done = python("-c", "import sys, ldm.cli.app; print(*sys.modules)")
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert {"ldm", "typer"} <= loaded
    assert not loaded & {"torch", "diffusers", "transformers", "PIL", "numpy", "rich", "yaml", "open_clip"}


def test_a_real_process_answers() -> None:
    assert python("-m", "ldm", "--version").stdout == f"ldm {__version__}\n"
    shown = python("-m", "ldm", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(f"\n  {command} " in shown.stdout for command in COMMANDS)
    wrong = python("-m", "ldm", "generat")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: No such command 'generat'. Did you mean 'generate'? (see ldm --help)\n"


def test_without_a_command_the_help_is_shown() -> None:
    assert ldm().stdout == ldm("--help").stdout
    assert ldm().exit_code == 0


def parameters(command: Any, name: str) -> list[tuple[str, Any]]:
    own = [(f"{name} {p.name}", p) for p in command.params if p.name != "help"]
    inner = [parameters(c, f"{name} {key}") for key, c in getattr(command, "commands", {}).items()]
    return [*own, *(parameter for group in inner for parameter in group)]


def test_every_option_has_help_that_ends_like_a_sentence() -> None:
    found = parameters(typer.main.get_command(app), "ldm")
    assert len(found) > 25
    assert not [name for name, p in found if len(p.help or "") < 20 or p.help[-1] not in ".]"]


@pytest.mark.parametrize("command", [[name] for name in COMMANDS] + [["data", "check"]])
def test_every_command_says_what_it_is_for(command: list[str]) -> None:
    result = ldm(*command, "--help")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[2].strip()
    (line,) = [
        x for x in ldm(*command[:-1], "--help").stdout.splitlines() if x.startswith(f"  {command[-1]} ")
    ]
    assert not line.endswith("...")


# ldm info, ldm doctor, ldm data check


def test_info_of_a_model(tmp_path: Path) -> None:
    parts = make_sd2(tmp_path, ZERO_SNR_SCHEDULER)
    pipeline = Pipeline(parts)
    pipeline.save(tmp_path / "model")
    rows = dict(line.split(":", 1) for line in ldm("info", tmp_path / "model").stdout.splitlines())
    rows = {key: value.strip() for key, value in rows.items()}
    count = sum(p.numel() for p in parts.denoiser.parameters())
    assert rows["model"] == "model"
    assert rows["denoiser"] == f"UNet2DConditionModel, {count:,} parameters"
    assert rows["prediction type"] == "v_prediction"
    assert rows["noise schedule"].startswith("scaled_linear, betas 0.00085 to 0.012, 1000 training steps")
    assert rows["noise schedule"].endswith("zero terminal SNR")
    assert (rows["default num_inference_steps"], rows["default height"]) == ("4", "16")
    assert "ddim" in rows["schedulers"]
    assert "heun" not in rows["schedulers"]
    size_bytes = sum(p.stat().st_size for p in (tmp_path / "model").rglob("*") if p.is_file())
    assert rows["size on disk"] == f"{size_bytes / 1e6:.1f} MB"
    ldm("generate", "a red apple", "--model", tmp_path / "model", "--output", tmp_path / "out")
    (picture,) = (tmp_path / "out").iterdir()
    settings = dict(line.split(":", 1) for line in ldm("info", picture).stdout.splitlines())
    assert settings["prompt"].strip() == "a red apple"
    assert settings["weights_hash"].strip() == rows["weights hash"]
    assert "versions.torch" in settings
    facts = json.loads(ldm("info", tmp_path / "model", "--json").stdout)
    assert facts["networks"]["denoiser"] == {"class": "UNet2DConditionModel", "num_parameters": count}
    assert facts["noise_schedule"]["rescale_betas_zero_snr"] is True
    assert (facts["size_bytes"], facts["defaults"]["height"]) == (size_bytes, 16)
    assert json.loads(ldm("info", picture, "--json").stdout) == read_settings(picture)


def test_doctor_says_what_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    result = ldm("doctor")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert lines["ldm"].startswith(f"ldm {__version__}, Python 3.")
    for package in ("torch", "diffusers", "transformers", "open_clip_torch", "datasets", "accelerate"):
        assert lines[package].split()[-1] == "loads"
    assert "not installed (optional" in lines["wandb"]
    assert "threads" in lines["cpu:"]


def test_doctor_names_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    result = ldm("doctor")
    assert result.exit_code == 2
    assert result.stderr == "error: peft cannot be loaded: install the versions in constraints.txt\n"


def test_data_check_counts_and_writes_nothing(tmp_path: Path) -> None:
    folder = write_squares(tmp_path / "data")
    Image.new("RGB", (24, 8)).save(
        folder / "wide.gif", save_all=True, append_images=[Image.new("1", (24, 8), 1)]
    )
    with (folder / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "wide.gif", "text": "red"}')
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = ldm("data", "check", folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"{folder}: 8 usable images, 15 captions (14 different)" in result.stdout
    assert "16 x 16 (7), 24 x 8 (1)" in result.stdout
    assert "smallest side: 8 pixels; largest: 24 pixels" in result.stdout
    assert "  16 letters: a magenta square" in result.stdout
    assert "animated: first of 2 frames used: 1 image (wide.gif)" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_data_check_names_every_broken_image(tmp_path: Path) -> None:
    folder = write_squares(tmp_path / "data")
    for name in ("red.png", "blue.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:45])
    result = ldm("data", "check", folder)
    assert result.exit_code == 2
    assert "5 usable images" in result.stdout
    first, second, last = result.stderr.splitlines()
    assert first.startswith(f"error: {folder / 'red.png'}: ")
    assert second.startswith(f"error: {folder / 'blue.png'}: ")
    assert (
        last
        == "error: 2 of 7 images cannot be used: fix or remove them; --fix-list FILE.csv writes what to do"
    )


def test_data_check_refuses_a_folder_that_training_would_refuse(tmp_path: Path) -> None:
    result = ldm("data", "check", tmp_path / "absent")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "absent: no such folder" in result.stderr


# Progress


def test_a_terminal_gets_a_live_bar() -> None:
    code = (
        "import time; from ldm.io.progress import work_bar\n"
        "with work_bar('image') as bar: [(bar.show(done, 3), time.sleep(.1)) for done in range(3)]"
    )
    leader, follower = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", code], env={**ENVIRONMENT, "TERM": "xterm"}, stderr=follower, check=True
    )
    os.close(follower)
    shown = os.read(leader, 100_000).decode()
    os.close(leader)
    assert "2/3" in shown
    assert "images/s" in shown


def test_without_a_terminal_there_are_occasional_lines(capsys: pytest.CaptureFixture[str]) -> None:
    from ldm.io.progress import WorkBar

    for pause_sec, expected in ((60.0, ""), (0.0, "step 1 of 2\nstep 2 of 2\n")):
        bar = WorkBar("step", line_every_sec=pause_sec)
        bar.show(1, 2)
        bar.show(2, 2)
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", expected)
