"""What holds for every command that writes or checks something.

A signal at any place ends it in one line, with nothing half-written. --json prints one object, --quiet nothing.
"""

import json
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from types import FrameType

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import ldm.export.verify.compare
from ldm.cli.app import app
from ldm.export.formats.single_file import write_single_file
from ldm.export.verify import readers
from ldm.io.ownership import check_replaceable
from ldm.models.loading.model import save_parts
from tests.support.hub_server import HubServer
from tests.support.signal_places import places_of, signalled_at
from tests.support.slow_cases import rest_slow
from tests.support.tiny_averages import walk
from tests.support.tiny_curves import rows_of, write_run
from tests.support.tiny_models import make_sd1
from tests.support.tiny_push import SENT, given_hub, make_folder  # noqa: F401  # a fixture
from tests.support.tiny_runs import write_squares
from tests.support.tiny_single_file import make_narrow_sd1

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# a file may be opened just before the signal, and closed by the interpreter
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

COMMANDS = {
    "export": ["export", "RUN/pipeline", "made", "--num-samples", "1"],
    "verify": ["verify", "RUN/pipeline", "--no-draw"],
    "push": ["push", "FOLDER", "ann/model", "--yes"],
    "push --dry-run": ["push", "FOLDER", "ann/model", "--dry-run"],
    "plot": ["plot", "CURVES", "--output", "made.png"],
    "ema": ["ema", "RUN", "--width", "0.12", "--output", "made"],
    "import": ["import", "FILE", "made"],
    "data check": ["data", "check", "DATA", "--report", "made", "--fix-list", "made.csv"],
    "init": ["init", "DATA", "--base", "RUN/pipeline", "--output", "made.yaml"],
    "data prune": ["data", "prune", "--max-gb", "1"],
    "info": ["info", "RUN/pipeline"],
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the commands work on, by the word that stands for it."""
    folder = tmp_path_factory.mktemp("given")
    run = folder / "run"
    parts = make_sd1(run)
    parts.denoiser.unet.conv_out.requires_grad_(True)
    walk(parts, run, 0.12)
    save_parts(parts, run / "pipeline")
    write_single_file(make_narrow_sd1(), folder / "m.safetensors", dtype=torch.float32, metadata={})
    made = {
        "RUN": run,
        "FILE": folder / "m.safetensors",
        "DATA": write_squares(folder / "data"),
        "CURVES": write_run(folder / "curves", rows_of()),
        "FOLDER": make_folder(folder / "folder"),
    }
    return {word: str(path) for word, path in made.items()}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError("a signal was not handled")

    monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ldm.export.verify.compare, "_run", read_here)
    former = [(number, signal.signal(number, fail)) for number in SIGNALS]
    yield
    for number, handler in former:
        signal.signal(number, handler)


def read_here(task: Path, reader: str) -> None:
    """Run the reader of an export in this process, which has diffusers loaded already; what it says is not shown."""
    with redirect_stderr(StringIO()):
        readers.main([str(task)])


SLOW = ("import", "plot")


@pytest.mark.parametrize("name", rest_slow(COMMANDS, *(name for name in COMMANDS if name not in SLOW)))
def test_json_quiet_and_a_signal_at_any_place(name: str, given: dict[str, str], hub: HubServer) -> None:
    words = [re.sub(r"^[A-Z]+", lambda found: given[found[0]], word) for word in COMMANDS[name]]

    def run(*options: str) -> tuple[int, str, str]:
        remove_made(hub)
        done = CliRunner().invoke(app, [*words, *options])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout, done.stderr

    code, printed, said = run("--json", "--quiet")
    assert (code, said) == (0, "")
    assert isinstance(json.loads(printed), dict)
    places, quiet = places_of(lambda: run("--quiet"))
    assert quiet == (0, "", "")
    for index, number in enumerate(SIGNALS):
        place = places[(2 * index + 1) * len(places) // (2 * len(SIGNALS))]
        code, _, said = signalled_at(place, number, run)
        assert code == (130 if number == signal.SIGINT else 143), (place, said)
        assert said.splitlines()[-1] == "stopped" and "Traceback" not in said, (place, said)
        check_made(hub)
    code, printed, _ = run()
    assert code == 0 and printed
    assert not [path for path in Path().rglob(".*") if path.name.startswith((".tmp-", ".old-"))]


def test_quiet_hides_warnings_and_not_errors(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*options: str) -> str:
        done = CliRunner().invoke(app, ["import", given["FILE"], "taken/dest", *options])
        assert done.exit_code == 2
        return done.stderr

    Path("taken").touch()
    told = run()
    assert told.startswith("warning: m.safetensors does not say") and told.count("\n") == 2
    assert run("--quiet").startswith("error: ")


def check_made(hub: HubServer) -> None:
    """What a command made is whole, or absent."""
    made = {path.name: path for path in Path().glob("made*")}
    if folder := made.pop("made", None):
        report = folder / "data_report.json"
        if report.exists():
            json.loads(report.read_bytes())
        else:
            check_replaceable(folder)
    for path in made.values():
        if path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".yaml":
            assert yaml.safe_load(path.read_text())["program"] == "denoiser"
        else:
            assert path.suffix == ".csv"
    if "ann/model" in hub.store.repositories:
        assert sorted(hub.store.files("ann/model")) in ([], SENT)


def remove_made(hub: HubServer) -> None:
    for path in Path().glob("made*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    hub.store.repositories.clear()
