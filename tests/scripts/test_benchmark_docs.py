"""`docs/benchmarks/README.md` shows the results that are kept beside it."""

import json
from pathlib import Path

import pytest

from ldm.models.loading.folder import weights_hash
from ldm.models.loading.source import EMBEDDED
from tests.support.benchmark_folder import ROOT, benchmark

KEPT = sorted((ROOT / "docs" / "benchmarks").rglob("*.json"))


def results() -> list[dict[str, object]]:
    return benchmark("suite").read_results(KEPT)  # type: ignore[no-any-return]


def test_the_page_shows_the_results(tmp_path: Path) -> None:
    page = ROOT / "docs" / "benchmarks" / "README.md"
    (tmp_path / "README.md").write_text(
        "before\n<!-- benchmarks -->\nold\n<!-- end of benchmarks -->\nafter\n"
    )
    benchmark("speed_page").write_table(KEPT, tmp_path / "README.md")
    written = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert written.startswith("before\n<!-- benchmarks -->\n|")
    assert written.endswith("|\n<!-- end of benchmarks -->\nafter\n")
    assert written.count("\n") > 15
    assert written.removeprefix("before\n").removesuffix("after\n") in page.read_text(encoding="utf-8")


def test_a_ratio_to_the_published_script_is_of_the_published_script() -> None:
    trained = [result for result in results() if result["benchmark"] == "train"]
    assert trained
    for result in trained:
        assert result["reference"]["published"]  # type: ignore[index]
        assert {row["against"] for row in result["rows"]} == {"diffusers' script"}  # type: ignore[attr-defined]


def test_no_result_names_a_place_on_the_machine_that_measured() -> None:
    for path in KEPT:
        text = json.dumps(json.loads(path.read_text()))
        assert not any(place in text for place in ("/home/", "/tmp/", str(Path.home()), str(ROOT)))


@pytest.mark.parametrize("name", ["emoji-score", "emoji-score-fast"])
def test_the_score_is_that_of_the_model_inside_the_package(name: str) -> None:
    score = json.loads((ROOT / "docs" / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    assert score["weights_hash"] == weights_hash(EMBEDDED["emoji"])


def test_the_chart_is_there() -> None:
    assert (ROOT / "docs" / "images" / "benchmarks.png").stat().st_size > 10_000
