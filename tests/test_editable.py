"""From the folder above a checkout called `ldm`, an editable install still finds the package."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAYS = "import ldm; print(ldm.__version__)"


def python(folder: Path, *path: str) -> subprocess.CompletedProcess[str]:
    """Start Python in a folder, with entries on its path behind that folder, as a .pth file adds them."""
    code = f"import sys; sys.path[1:1] = {list(path)}; {SAYS}"
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, cwd=folder, env={"PATH": ""}, capture_output=True, text=True)


def test_a_folder_called_ldm_does_not_hide_the_package(tmp_path: Path) -> None:
    (tmp_path / "ldm/ldm").mkdir(parents=True)  # the checkout: no package itself
    assert "AttributeError" in python(tmp_path).stderr
    assert python(tmp_path, str(ROOT)).stdout.strip()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["distutils"]["editable_wheel"]["mode"] == "compat"


@pytest.mark.slow
def test_pip_installs_it_so(tmp_path: Path) -> None:
    import shutil

    checkout, target = tmp_path / "ldm", tmp_path / "site"
    checkout.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    for name in ("ldm", "train", "configs", "scripts"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    command = ["pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    subprocess.run([sys.executable, "-m", *command, "-e", str(checkout)], check=True, capture_output=True)
    (pth,) = target.glob("*.pth")
    assert pth.read_text().strip() == str(checkout)
