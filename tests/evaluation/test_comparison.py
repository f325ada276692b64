"""A model is called better only where its interval lies apart from the others', measured in the same way."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.evaluation.comparison import CANNOT_TELL, compare
from ldm.evaluation.intervals import Estimate
from ldm.evaluation.measurement import Measurement


def kid(value: float, spread: float = 0.1, seed: str = "0 + i", better: Any = "lower") -> dict[str, Any]:
    estimate = Estimate(value, value - spread, value + spread)
    return Measurement("kid", estimate, better, 10, 20, "score", {"seeds": seed}).to_dict()


@pytest.mark.parametrize(
    ("reports", "verdicts"),
    [
        ({"a": [kid(1.0)], "b": [kid(1.5)]}, ["a"]),
        ({"a": [kid(1.0)], "b": [kid(1.5)], "c": [kid(0.9)]}, [CANNOT_TELL]),
        ({"a": [kid(1.0)], "b": [kid(1.15)]}, [CANNOT_TELL]),
        ({"a": [kid(1.0, better="higher")], "b": [kid(1.5, better="higher")]}, ["b"]),
        ({"a": [kid(1.0, better="")], "b": [kid(1.5, better="")]}, [""]),
        ({"a": [kid(1.0)], "b": [kid(1.5, seed="9 + i")]}, ["", ""]),
        ({"a": [kid(1.0)], "b": [kid(float("nan"), float("nan"))]}, [""]),
    ],
)
def test_the_verdict(reports: dict[str, list[dict[str, Any]]], verdicts: list[str]) -> None:
    assert [row.verdict for row in compare(reports)] == verdicts


def test_the_command(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 1.5)):
        (tmp_path / name).mkdir()
        facts = {"model": name, "plan": {}, "measurements": [kid(value)]}
        (tmp_path / name / "evaluation.json").write_text(json.dumps(facts))
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["rows"][0]["verdict"] == "a"
    text = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")]).stdout
    assert "lower is better): a\n" in text
    for wrong, message in (([tmp_path / "a"], "two or more"), ([tmp_path, tmp_path / "a"], "does not exist")):
        refused = CliRunner().invoke(app, ["compare", *map(str, wrong)])
        assert refused.exit_code == 2 and message in refused.stderr
