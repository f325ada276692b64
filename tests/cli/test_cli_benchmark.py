"""`ldm benchmark`: what it runs, in a checkout and installed, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ldm.cli import processes
from ldm.cli.app import app
from ldm.cli.benchmark import WORKS, _benchmarks
from ldm.cli.programs import Home
from tests.support.benchmark_folder import ROOT, benchmark


def test_it_names_every_benchmark() -> None:
    assert (*benchmark("suite").BENCHMARKS, "all") == WORKS


def test_options_are_passed_on_to_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(processes, "run_processes", lambda command, environment: called.append(command) or 0)
    given = ["generate", "--model", "emoji", "--quick", "--rounds", "7", "--output", "result.json"]
    assert CliRunner().invoke(app, ["benchmark", *given]).exit_code == 0
    read = benchmark("command").parse(called[0][3:])
    assert (read.work, read.model, read.scale, read.rounds) == ("generate", "emoji", "quick", 7)
    assert (read.device, read.script, read.output) == ("cpu", None, Path("result.json"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["generat"], "error: unknown benchmark 'generat': did you mean 'generate'?"),
        (["train", "--device", "gpu"], "error: unknown device 'gpu'"),
        (["train", "--rounds", "0"], "error: Invalid value for '--rounds'"),
    ],
)
def test_unknown_names_are_refused_in_one_line(given: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["benchmark", *given])
    assert done.exit_code == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_the_programs_exit_code_is_returned(capfd: pytest.CaptureFixture[str]) -> None:
    given = ["train", "--script", "no-such-thing"]
    assert CliRunner().invoke(app, ["benchmark", *given]).exit_code == 2
    assert "no-such-thing" in capfd.readouterr().err.splitlines()[-1]


def test_a_model_that_does_not_exist_is_refused_by_the_program(capfd: pytest.CaptureFixture[str]) -> None:
    assert benchmark("command").main(["generate", "--model", "no-such-thing", "--quick"]) == 2
    assert "no-such-thing" in capfd.readouterr().err.splitlines()[-1]


def test_an_installed_package_has_its_own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    module, environment = _benchmarks(Home(Path("site"), "ldm_train", Path("site/ldm_train/configs")))
    assert module == "ldm_benchmark"
    assert str(ROOT) not in environment["PYTHONPATH"].split(":")
