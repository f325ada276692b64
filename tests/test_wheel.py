"""The wheel, installed outside the checkout and used from a folder that contains a file named train.py."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from ldm.version import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
MAX_MEGABYTES = 95

TINY_RUN = """\
program: autoencoder
run_dir: run
num_steps: 2
optim: {num_warmup_steps: 1}
global_batch_size: 2
data: {path: photos, height: 16, width: 16}
model: {block_out_channels: [8, 16], norm_num_groups: 4}
"""


@dataclass(frozen=True)
class Place:
    """An environment with the wheel, and a user's folder."""

    wheel: Path
    environment: Path
    folder: Path

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the environment in the folder; returns what it printed."""
        unwanted = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "VIRTUAL_ENV")
        variables = {key: value for key, value in os.environ.items() if key not in unwanted}
        command = [str(self.environment / "bin" / program), *arguments]
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout, from a copy: setuptools would include leftovers of an earlier build."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("ldm", "train", "configs", "scripts"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("open_ldm-*.whl")
    return wheel


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def make_environment(folder: Path, wheel: Path) -> Path:
    """A virtual environment with only the wheel; it uses the libraries that run this test."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip("--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    (own,) = folder.glob("lib/python*/site-packages")
    # .pth files inside this folder are not followed, so an editable install of ours stays out of reach
    (own / "zz_libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def write_photos(folder: Path) -> None:
    """Six captioned images, each with its .txt file."""
    folder.mkdir()
    for index, color in enumerate(("red", "green", "blue", "yellow", "black", "white")):
        Image.new("RGB", (16, 16), color).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a {color} square")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    wheel = build_wheel(tmp_path_factory.mktemp("build"))
    environment = make_environment(tmp_path_factory.mktemp("environment"), wheel)
    folder = tmp_path_factory.mktemp("user")
    (folder / "train.py").write_text("raise SystemExit('the train.py of the user was run')\n")
    (folder / "tiny.yaml").write_text(TINY_RUN)
    write_photos(folder / "photos")
    return Place(wheel, environment, folder)


def test_the_wheel_holds_the_model_and_the_configurations_and_is_small(place: Place) -> None:
    names = zipfile.ZipFile(place.wheel).namelist()
    assert place.wheel.stat().st_size < MAX_MEGABYTES * 1e6
    assets = [path for path in (ROOT / "ldm" / "assets").rglob("*") if path.is_file()]
    assert {path.relative_to(ROOT).as_posix() for path in assets} <= set(names)
    assert "ldm/assets/emoji/model_index.json" in names
    configs = {
        f"ldm_train/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert configs
    assert configs <= set(names)
    assert not [name for name in names if name.startswith(("train/", "tests/", "configs/"))]


def test_the_installed_package_is_the_one_that_runs(place: Place) -> None:
    where = "import ldm, ldm_train; print(ldm.__file__); print(ldm_train.__file__)"
    lines = place.run("python", "-c", where).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(str(place.environment)) for line in lines)


def test_version(place: Place) -> None:
    assert place.run("ldm", "--version").split() == ["ldm", __version__]


def test_info(place: Place) -> None:
    assert "prediction type" in place.run("ldm", "info", "emoji")


def test_generate(place: Place) -> None:
    printed = place.run("ldm", "generate", "a red apple", "--num-inference-steps", "4")
    with Image.open(place.folder / printed.splitlines()[-1]) as image:
        image.load()
        assert image.format == "PNG"


def test_benchmark(place: Place) -> None:
    assert "upkeep" in place.run("ldm", "benchmark", "--help")
    assert "smallest" in place.run("python", "-m", "ldm_benchmark", "--help")


def test_train(place: Place) -> None:
    place.run("ldm", "train", "tiny.yaml", "device=cpu")
    assert (place.folder / "run" / "autoencoder" / "diffusion_pytorch_model.safetensors").is_file()
    assert (place.folder / "run" / "report.json").is_file()
