"""`ldm doctor`: its description of the computer is correct."""

import json
import os
import shutil
import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from typer.testing import CliRunner

from ldm.cli import doctor
from ldm.cli.app import app
from ldm.cli.doctor import examine, sdpa_kernels

CPU = torch.device("cpu")
NEEDED = doctor.NEEDED


def test_every_dependency_is_checked() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {line.partition(">=")[0] for line in project["dependencies"]} == NEEDED.keys()


@pytest.fixture(autouse=True)
def few_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages have tests in test_cli.py; importing all of them takes seconds."""
    monkeypatch.setattr(doctor, "NEEDED", {"numpy": "numpy"})
    monkeypatch.setattr(doctor, "OPTIONAL", {"nowhere": ("nowhere", "this test")})


def test_a_kernel_is_named_only_if_it_runs_and_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    named = sdpa_kernels(CPU)
    assert "math" in named
    query = torch.randn(1, 1, 4, 8)
    for name in ("flash", "efficient", "cudnn"):
        backend = getattr(SDPBackend, f"{name.upper()}_ATTENTION")
        try:
            with warnings.catch_warnings(action="ignore"), sdpa_kernel([backend]):
                torch.nn.functional.scaled_dot_product_attention(query, query, query)
            assert name in named
        except RuntimeError:
            assert name not in named
    wrong = torch.zeros_like
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", lambda q, k, v: wrong(q))
    assert sdpa_kernels(CPU) == []


def test_the_computer_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / "not" / "yet" / "there"))
    monkeypatch.chdir(tmp_path)
    facts = examine()
    assert facts["num_cores"] == len(os.sched_getaffinity(0))
    assert 0 < facts["memory_bytes"] <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = shutil.disk_usage(tmp_path).free
    folders = {"this folder": tmp_path, "the cache": tmp_path / "not" / "yet" / "there"}
    assert facts["free_disk"].keys() == folders.keys()
    for name, folder in folders.items():
        assert facts["free_disk"][name]["folder"] == str(folder)
        assert facts["free_disk"][name]["free_bytes"] == pytest.approx(free, abs=1e9)
    assert not (tmp_path / "not").exists()


def test_what_does_not_load_is_not_needed_to_describe_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED", {"torch": "no_such_torch"})
    facts = examine()
    assert facts["packages"]["torch"]["fault"] == "not installed"
    assert facts["devices"] == [] and facts["free_disk"].keys() == {"this folder"}


def test_json_says_the_same_as_the_text() -> None:
    def run(*options: str) -> Any:
        result = CliRunner().invoke(app, ["doctor", *options])
        assert (result.exit_code, result.stderr) == (0, "")
        return result.stdout

    facts = json.loads(run("--json"))
    assert facts["packages"]["numpy"]["fault"] is None
    assert facts["packages"]["nowhere"] == {
        "version": None, "fault": "not installed", "optional_for": "this test"
    }  # fmt: skip
    assert facts["devices"][0]["name"] == "cpu" and "math" in facts["devices"][0]["attention"]
    lines = run().splitlines()
    assert f"attention on cpu: {', '.join(facts['devices'][0]['attention'])}" in lines
    assert any(line.startswith(f"numpy{'':13}{facts['packages']['numpy']['version']} ") for line in lines)
    assert f"embedded model emoji: {facts['embedded_model_bytes'] / 1e6:.1f} MB" in lines


def test_the_memory_of_a_container_is_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text
    limit = Path("/sys/fs/cgroup/memory.max")
    monkeypatch.setattr(Path, "is_file", lambda path: path == limit)
    for text, expected in (("1048576\n", 2**20), ("max\n", None)):
        monkeypatch.setattr(Path, "read_text", lambda p, t=text, **o: t if p == limit else real(p, **o))
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert doctor._memory_bytes() == (expected or total)
