"""Pictures, trained weights, exports and a data report are what they were before the code was moved.

Two commits are compared on one machine, for kernels differ from machine to machine:

    pip install --no-deps --target REFERENCE open_ldm-OLD.whl
    LDM_GOLDEN_REFERENCE=REFERENCE pytest -m slow tests/test_golden.py

What no kernel touches is compared with `tests/golden.json` in every run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DRIVER = ROOT / "tests" / "support" / "golden_driver.py"
REFERENCE = os.environ.get("LDM_GOLDEN_REFERENCE")
KEPT: dict[str, str] = json.loads((ROOT / "tests" / "golden.json").read_text())


def values(package: Path, out: Path, *sections: str) -> dict[str, str]:
    """The values of the driver, with `ldm` from a folder."""
    environment = {**os.environ, "PYTHONPATH": str(package), "LDM_CACHE_DIR": str(out.with_suffix(".cache"))}
    command = [sys.executable, str(DRIVER), str(out), *sections]
    done = subprocess.run(command, cwd=out.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(out.read_text())
    return found


def test_what_no_kernel_touches_is_as_it_was(tmp_path: Path) -> None:
    found = values(ROOT, tmp_path / "now.json", "fixed")
    assert found == KEPT


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(REFERENCE is None, reason="LDM_GOLDEN_REFERENCE names no installed older version")
@pytest.mark.parametrize("section", ["pictures", "trainings", "exports"])
def test_everything_is_as_before(tmp_path: Path, section: str) -> None:
    assert REFERENCE is not None
    before = values(Path(REFERENCE), tmp_path / "before.json", section)
    now = values(ROOT, tmp_path / "now.json", section)
    assert len(before) > 15
    assert {name: now.get(name) for name in before} == before
