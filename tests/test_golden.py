"""Images, trained weights, exports and a data report are the same as before the refactoring.

Two commits are compared on one machine, because kernels differ between machines:

    pip install --no-deps --target REFERENCE open_ldm-OLD.whl
    LDM_GOLDEN_REFERENCE=REFERENCE pytest -m slow tests/test_golden.py

Values that do not depend on kernels are compared with `tests/golden.json` in every run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ldm.export.verify.compare
from ldm.cli.app import app
from ldm.export.verify import readers
from tests.support import golden_driver

ROOT = Path(__file__).parent.parent
DRIVER = ROOT / "tests" / "support" / "golden_driver.py"
REFERENCE = os.environ.get("LDM_GOLDEN_REFERENCE")
KEPT: dict[str, str] = json.loads((ROOT / "tests" / "golden.json").read_text())


def values(package: Path, out: Path, *sections: str) -> dict[str, str]:
    """The driver's values, with `ldm` imported from a folder."""
    environment = {**os.environ, "PYTHONPATH": str(package), "LDM_CACHE_DIR": str(out.with_suffix(".cache"))}
    command = [sys.executable, str(DRIVER), str(out), *sections]
    done = subprocess.run(command, cwd=out.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(out.read_text())
    return found


def command_here(*arguments: object, code: int = 0) -> None:
    """Run a command of `ldm` in this process, which has imported everything."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, done.output


def test_values_independent_of_kernels_are_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The export's reader runs here, too; the files that are written do not depend on it."""
    monkeypatch.setattr(golden_driver, "command", command_here)
    monkeypatch.setattr(ldm.export.verify.compare, "_run", lambda task, _: readers.main([str(task)]))
    assert dict(golden_driver.fixed(tmp_path)) == KEPT


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    REFERENCE is None, reason="LDM_GOLDEN_REFERENCE does not point to an installed older version"
)
@pytest.mark.parametrize("section", ["pictures", "trainings", "exports"])
def test_everything_is_unchanged(tmp_path: Path, section: str) -> None:
    assert REFERENCE is not None
    before = values(Path(REFERENCE), tmp_path / "before.json", section)
    now = values(ROOT, tmp_path / "now.json", section)
    assert len(before) > 15
    assert {name: now.get(name) for name in before} == before
