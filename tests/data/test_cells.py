"""A cell means the same in csv, jsonl, parquet and tars, in every column; names of files as Windows writes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldm.data.sample import Sample
from ldm.data.sources.image_folder import read_folder
from ldm.errors import UserError
from tests.support.tiny_folders import image, jsonl, row
from tests.support.tiny_sources import parquet, png, read, tar

Write = Callable[[Path, dict[str, Any]], Sample]


def in_jsonl(root: Path, cells: dict[str, Any]) -> Sample:
    image(root / "a.png")
    jsonl(root, {"file_name": "a.png", **cells})
    return read_folder(root)[0]


def in_parquet(root: Path, cells: dict[str, Any]) -> Sample:
    image(root / "a.png")
    parquet(root / "metadata.parquet", {key: [cell] for key, cell in {"file_name": "a.png", **cells}.items()})
    return read_folder(root)[0]


def in_rows(root: Path, cells: dict[str, Any]) -> Sample:
    columns = {key: [cell] for key, cell in {"image": png(), **cells}.items()}
    return read(parquet(root / "a.parquet", columns)).samples[0]


def in_tar(root: Path, cells: dict[str, Any]) -> Sample:
    return read(tar(root / "a.tar", {"a.png": png(), "a.json": json.dumps(cells)})).samples[0]


def in_csv(root: Path, cells: dict[str, Any]) -> Sample:
    image(root / "a.png")
    quoted = ['"' + str(cell).replace('"', '""') + '"' for cell in ("a.png", *cells.values())]
    (root / "metadata.csv").write_text(",".join(("file_name", *cells)) + "\n" + ",".join(quoted) + "\n")
    return read_folder(root)[0]


WRITERS: list[Write] = [in_csv, in_jsonl, in_parquet, in_rows, in_tar]

CELLS: dict[str, tuple[dict[str, Any], tuple[str, ...], bool | None]] = {
    "blanks": ({" text ": "  a dog\t"}, ("a dog",), None),
    "mark and line ends": ({"text": "\ufeffa\r\ndog"}, ("a\ndog",), None),
    "list as text": ({"text": ' ["a dog", "a hound"]'}, ("a dog", "a hound"), None),
    "brackets": ({"text": "[V] dog"}, ("[V] dog",), None),
    "further list as text": ({"text": "a dog", "captions": ' ["a hound"] '}, ("a dog", "a hound"), None),
    "blank cells": ({"text": "a dog", "captions": " ", "flip": " "}, ("a dog",), None),
    "flip in words": ({"text": "a dog", "flip": " False "}, ("a dog",), False),
    "flip as a number": ({"text": "a dog", "flip": 1}, ("a dog",), True),
}


@pytest.mark.parametrize("write", WRITERS)
def test_a_cell_means_the_same_everywhere(tmp_path: Path, write: Write) -> None:
    for number, (cells, captions, flip) in enumerate(CELLS.values()):
        sample = write(tmp_path / str(number), cells)
        assert (sample.captions, sample.may_flip) == (captions, flip), cells


CSV = {
    'a.png, "a dog"': "a dog",
    'a.png ,\t"a dog, brown"  ': "a dog, brown",
    '"a.png" , "say ""hi"" , twice"': 'say "hi" , twice',
    'a.png, "two\nlines"': "two\nlines",
    'a.png,a 3" nail': 'a 3" nail',
    "a.png, a dog,": "a dog",
    "a.png, a dog , ": "a dog",
}


def test_csv_with_blanks_around_its_cells(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    for line, caption in CSV.items():
        (tmp_path / "metadata.csv").write_text(f"file_name, text\n{line}\n")
        (sample,) = read_folder(tmp_path)
        assert (sample.sample_id, sample.captions) == ("a.png", (caption,)), line
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,"a" dog\n')
    with pytest.raises(UserError, match=r"line 2: .*expected after"):
        read_folder(tmp_path)


NAMES = [
    ("images\\a.png", "images/a.png"),
    (".\\images\\a.png", "images/a.png"),
    (" images/a.png ", "images/a.png"),
]


@pytest.mark.parametrize(("written", "there"), NAMES)
def test_names_as_windows_writes_them(tmp_path: Path, written: str, there: str) -> None:
    image(tmp_path / there)
    image(tmp_path / "source/a.png")
    jsonl(tmp_path, row(written, source_file_name="source\\a.png"))
    (sample,) = read_folder(tmp_path)
    assert sample.sample_id == there and sample.open().size == (2, 2)


def test_a_backslash_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    for name in ("images\\b.png", "..\\a.png"):
        jsonl(tmp_path, row(name), row("a.png"))
        with pytest.raises(UserError, match=r'is not in .*: write names with "/" instead of backslashes'):
            read_folder(tmp_path)
    image(tmp_path / "b\\c.png")  # a legal name on Linux
    jsonl(tmp_path, row("b\\c.png"), row("a.png"))
    assert read_folder(tmp_path)[0].sample_id == "b\\c.png"
