"""`ldm schema`: the shipped configurations match the JSON schema of the settings, which finds mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.cli.programs import find_home
from ldm.cli.schema import table_lines
from ldm.config import read_yaml
from train.settings.schema import SETTINGS, main, schema, settings_of

FILES = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
CONFIGS = [path for path in FILES if path.parent.name != "accelerate"]  # those are for Accelerate's launcher


def faults(tree: Any, part: dict[str, Any], whole: dict[str, Any], key: str = "") -> list[str]:
    """The faults of a tree by a schema: unknown keys, missing keys, values outside a list of choices."""
    if "$ref" in part:
        return faults(tree, whole["$defs"][part["$ref"].rpartition("/")[2]], whole, key)
    if "anyOf" in part:
        return min((faults(tree, each, whole, key) for each in part["anyOf"]), key=len)
    choices = part.get("enum", [part["const"]] if "const" in part else [tree])
    found = [] if tree in choices else [f"{key} = {tree}"]
    if isinstance(tree, dict) and "properties" in part:
        assert part["additionalProperties"] is False
        found += [f"{key}{name} is missing" for name in part.get("required", []) if name not in tree]
        for name, value in tree.items():
            inner = part["properties"].get(name)
            found += faults(value, inner, whole, f"{key}{name}.") if inner else [f"{key}{name} is unknown"]
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_schema_holds_for_every_configuration_shipped(path: Path) -> None:
    tree = read_yaml(path)
    part = schema(tree["program"])
    assert faults(tree, part, part) == []
    assert faults({**tree, "num_step": 1}, part, part) == ["num_step is unknown"]
    assert faults({**tree, "device": "gpu"}, part, part) == ["device. = gpu"]
    del tree["run_dir"]
    assert faults(tree, part, part) == ["run_dir is missing"]


def test_without_a_program_the_settings_name_their_own() -> None:
    found = schema()
    assert set(found["discriminator"]["mapping"]) == set(find_home().programs) == set(SETTINGS)
    assert len(found["oneOf"]) == len(SETTINGS)
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_module_prints_the_schema_or_refuses_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["autoencoder"]) == 0
    assert json.loads(capsys.readouterr().out) == schema("autoencoder")
    assert main(["denoise"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown program 'denoise': did you mean 'denoiser'?")


@pytest.mark.slow
def test_the_command_starts_the_module() -> None:
    result = CliRunner().invoke(app, ["schema", "denoiser", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout) == schema("denoiser")
    result = CliRunner().invoke(app, ["schema", "denoiser"])
    assert result.stdout.splitlines() == list(table_lines(schema("denoiser"), max(74, 80)))


@pytest.mark.parametrize("program", SETTINGS)
def test_the_table_has_every_setting(program: str) -> None:
    lines = list(table_lines(schema(program)))
    assert lines[0] == f"program: {program}"
    keys = {line.split("  ")[0] for line in lines[1:] if not line.startswith(" ")}
    assert set(settings_of(program).model_fields) == {key.partition(".")[0] for key in keys}
    text = "\n".join(lines)
    assert "run_dir  (text, required)" in text and "data.path  (text or none, default null)" in text
    assert max(map(len, lines)) <= 160 and "optim.learning_rate  (number > 0" in text


def test_the_command_refuses_an_unknown_program_at_once() -> None:
    result = CliRunner().invoke(app, ["schema", "unet"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: unknown program 'unet'")
