"""A wrong setting is told without torch: the settings that are checked are those of the programs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from train.settings.schema import SETTINGS, schema

ROOT = Path(__file__).parents[2]
DRIVER = """
import json, sys
from pathlib import Path
from train.settings.check_settings import Placeholders, main
sys.meta_path.insert(0, Placeholders())
from ldm.config import load_settings, read_yaml
from train.settings.schema import SETTINGS, schema, settings_of
configs = [path for path in Path("configs").rglob("*.yaml") if path.parent.name != "accelerate"]
for path in configs:
    load_settings(settings_of(read_yaml(path)["program"]), path)
first = read_yaml(configs[0])["program"], str(configs[0])
codes = [main([*first, override]) for override in ("seed=3", "lr=1", "seed=x")]
real = [name for name, module in sys.modules.items() if name.partition(".")[0] == "torch" and module.__spec__.origin]
schemas = {name: schema(name) for name in SETTINGS}
print(json.dumps({"schemas": schemas, "codes": codes, "real": real, "n": len(configs)}))
"""


@pytest.fixture(scope="module")
def found() -> tuple[dict[str, Any], str]:
    """What a process without torch says, and its stderr."""
    run = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout), run.stderr


def test_the_settings_without_torch_are_those_of_the_programs(found: tuple[dict[str, Any], str]) -> None:
    said, _ = found
    assert said["schemas"] == {name: schema(name) for name in SETTINGS}
    assert said["real"] == [] and said["n"] > 5  # every configuration shipped was accepted


def test_a_wrong_key_or_value_is_told_and_a_right_one_passes(found: tuple[dict[str, Any], str]) -> None:
    said, errors = found
    assert said["codes"] == [0, 2, 2]
    assert "did you mean 'optim.learning_rate'?" in errors and "seed = 'x'" in errors
