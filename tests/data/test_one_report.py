"""Everything that is wrong in a folder is found in one pass; captions made by a rule; the list of fixes."""

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.data.report.report import make_report
from ldm.data.sources.image_folder import read_folder
from ldm.data.sources.no_caption import RULE_NOTES, MissingCaption
from ldm.data.sources.reading import SourceSettings, read_source
from ldm.data.survey import survey
from ldm.errors import UserError
from tests.support.tiny_folders import image, jsonl, row
from tests.support.tiny_sources import outcomes, parquet, png, tar


def mess(root: Path) -> Path:
    """A folder with one of each usual fault."""
    for name in ("good", "bare", "empty", "latin", "twice"):
        image(root / f"{name}.png")
    image(root / "twice.jpg")
    for name, text in {"good": b"good", "empty": b" \n", "latin": "caf\u00e9".encode("latin-1")}.items():
        (root / f"{name}.txt").write_bytes(text)
    for name in ("twice", "alone", "raw", "broken"):
        (root / f"{name}.txt").write_text(name)
    (root / "raw.cr2").write_bytes(b"")
    (root / "broken.png").write_bytes(b"not an image")
    return root


FAULTS = {
    "alone.txt": ".txt file without an image",
    "bare.png": "image without a caption",
    "broken.png": "not an image in a known format",
    "empty.png": "empty caption",
    "latin.png": "line 1: not UTF-8 at byte 3",
    "raw.cr2": "this image format is not supported",
    "raw.txt": ".txt file without an image",
    "twice.png": "share one .txt file",
}


def test_data_check_lists_every_fault_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / "cache"))
    folder, fixes = mess(tmp_path / "data"), tmp_path / "fixes.csv"
    result = CliRunner().invoke(app, ["data", "check", str(folder), "--fix-list", str(fixes)])
    assert (result.exit_code, result.exception.__class__) == (2, SystemExit)
    assert result.stderr.splitlines()[-1] == f"error: 8 of 10 images cannot be used: see {fixes}"
    rows = list(csv.DictReader(fixes.read_text().splitlines()))
    named = {Path(each["file"]).name: each for each in rows}
    assert set(named) == set(FAULTS) and len(rows) == len(FAULTS)
    for name, fault in FAULTS.items():
        assert fault in named[name]["what_is_wrong"] and fault in result.stderr, name
        assert named[name]["what_to_do"] not in ("", named[name]["what_is_wrong"])
    assert named["latin.png"]["what_to_do"] == "save it as UTF-8"
    again = CliRunner().invoke(app, ["data", "check", str(folder), "--fix-list", str(fixes)])
    assert "exists already" in again.stderr


def test_a_run_is_refused_with_the_way_on(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"6 more cannot be used: `ldm data check` lists all, and its --fix-list"
    ):
        read_folder(mess(tmp_path))


def test_rows_are_faulty_one_by_one(tmp_path: Path) -> None:
    for name in "abcde":
        image(tmp_path / f"{name}.png")
    jsonl(tmp_path, row("a.png"), row("b.png", " "), row("gone.png"), row("a.png", "again"))
    with (tmp_path / "metadata.jsonl").open("ab") as file:
        file.write(b'{"file_name": "c.png", \n{"file_name": "d.png", "text": "\xe9"}\n')
    reading = read_source(SourceSettings(path=str(tmp_path)), tolerant=True)
    place = str(tmp_path / "metadata.jsonl")
    found = outcomes(reading)
    assert found.pop("a.png") == ("a thing",)
    reasons = {name: str(reason).removeprefix(place) for name, reason in found.items()}
    assert reasons["b.png"].startswith(", line 2: empty caption")
    assert reasons["gone.png"].startswith(", line 3: 'gone.png' is not in")
    assert reasons[f"{place}, line 4"].startswith(", line 4: 'a.png' has a row already")
    assert reasons[f"{place}, line 5"].startswith(", line 5: not JSON")
    assert reasons[f"{place}, line 6"].startswith(", line 6: not UTF-8 at byte ")
    assert {"c.png", "d.png", "e.png"} <= set(reasons) and len(reasons) == 8
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_bytes(b'file_name,text\na.png,x\nb.png,"\xe9\n"\nc.png,y,z\nd.png,ok\n')
    found = outcomes(read_source(SourceSettings(path=str(tmp_path)), tolerant=True))
    assert {name for name, each in found.items() if isinstance(each, tuple)} == {"a.png", "d.png"}
    assert "line 3: not UTF-8 at byte 30" in " ".join(map(str, found.values()))


RULES: dict[MissingCaption, dict[str, str]] = {
    "empty": {"brown_dog/red-apple_03.png": "", "top.png": ""},
    "filename": {"brown_dog/red-apple_03.png": "red apple 03", "top.png": "top"},
    "folder": {"brown_dog/red-apple_03.png": "brown dog", "top.png": "my pets"},
}


@pytest.mark.parametrize("rule", RULES)
def test_captions_by_a_rule_are_said_in_the_report(tmp_path: Path, rule: MissingCaption) -> None:
    root = tmp_path / "my_pets"
    for name in RULES[rule]:
        image(root / name)
    image(root / "own.png")
    (root / "own.txt").write_text("my own")
    (root / "top.txt").write_text("\n")  # an empty caption is none
    beside = read_source(SourceSettings(path=str(root)), missing=rule)
    (root / "own.txt").unlink()
    (root / "top.txt").unlink()
    jsonl(root, row("own.png", "my own"), row("top.png", None))
    rows = read_source(SourceSettings(path=str(root)), missing=rule)
    for reading in (beside, rows):
        captions = {sample.sample_id: sample.text for sample in reading.samples}
        assert captions == {**RULES[rule], "own.png": "my own"}
    report = make_report(rows, survey(rows.samples, None))
    assert report.notes == {RULE_NOTES[rule]: ["top.png", "brown_dog/red-apple_03.png"]}


def test_rules_where_there_are_no_files(tmp_path: Path) -> None:
    members = {"pets/red_dog.png": png(), "cat.png": png(1), "cat.txt": "a cat"}
    tars = SourceSettings(path=str(tar(tmp_path / "a.tar", members)))
    rows = SourceSettings(
        path=str(parquet(tmp_path / "a.parquet", {"image": [png(), png()], "text": ["x", None]}))
    )
    assert outcomes(read_source(tars, missing="filename"))["a.tar/pets/red_dog"] == ("red dog",)
    assert outcomes(read_source(tars, missing="folder"))["a.tar/pets/red_dog"] == ("pets",)
    assert outcomes(read_source(tars, missing="empty"))["a.tar/pets/red_dog"] == ("",)
    assert "no caption" in outcomes(read_source(tars))["a.tar/pets/red_dog"]
    assert outcomes(read_source(rows, missing="empty"))["a.parquet/1"] == ("",)
    assert "no 'text'" in outcomes(read_source(rows, missing="filename"))["a.parquet/1"]


def test_init_goes_on_where_too_much_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for index in range(4):
        image(tmp_path / f"data/red_dog_{index}.png")
    (tmp_path / "data/broken.png").write_bytes(b"no image")

    def init(*options: str) -> str:
        result = CliRunner().invoke(app, ["init", "data", "--output", "data.yaml", *options])
        assert result.exit_code in (0, 2), result.exception
        return result.stderr if result.exit_code else Path("data.yaml").read_text()

    assert "5 images without a caption" in init()
    said = init("--missing-captions", "filename")
    assert "1 of 5 samples are bad" in said and "--fix-list" in said and "raise max_bad_fraction" in said
    text = init("--missing-captions", "filename", "--max-bad-fraction", "0.25")
    assert "  missing: filename " in text and "  max_bad_fraction: 0.25 " in text
    assert "red dog 0" in text
