"""`data.leave_out`: by id or by the hash of an id, with all repeats."""

import codecs
import os
from pathlib import Path

import pytest

from ldm.config import validate
from ldm.data.leave_out import HASHED, hashed_id, read_drop_list, without, write_drop_list
from ldm.data.prepare import DataSettings
from ldm.data.sample import Refusal
from ldm.data.sources.reading import Reading, SourceSettings, read_source
from ldm.errors import UserError
from tests.support.tiny_runs import write_squares


def read(tmp_path: Path, repeats: int = 1) -> Reading:
    data = write_squares(tmp_path / "squares")
    return read_source(SourceSettings(path=str(data), repeats=repeats))


def ids(reading: Reading) -> set[str]:
    return {sample.sample_id for sample in reading.samples}


def test_ids_and_hashes_leave_samples_and_refusals_out(tmp_path: Path) -> None:
    reading = read(tmp_path)
    reading = Reading(reading.samples, [Refusal("bad.png", "broken")])
    left = without(reading, ("red.png", hashed_id("cyan.png"), "bad.png"), repeated=False)
    assert ids(reading) - ids(left) == {"red.png", "cyan.png"} and not left.refusals
    assert "cyan" not in hashed_id("cyan.png") and hashed_id("cyan.png").startswith(HASHED)
    assert without(reading, (), repeated=False) is reading


def test_a_hash_leaves_all_repeats_out(tmp_path: Path) -> None:
    reading = read(tmp_path, repeats=3)
    left = without(reading, (hashed_id("red.png"),), repeated=True)
    assert ids(reading) - ids(left) == {"red.png", "red.png#2", "red.png#3"}
    assert ids(without(reading, ("red.png#2",), repeated=True)) == ids(reading) - {"red.png#2"}
    other = Reading([s for s in reading.samples if s.sample_id != "red.png"], [])
    assert ids(without(other, (hashed_id("red.png#2"),), repeated=False)) == ids(other) - {"red.png#2"}


def test_an_unknown_id_is_named_and_an_unknown_hash_is_not(tmp_path: Path) -> None:
    reading = read(tmp_path)
    with pytest.raises(UserError, match=r"no sample is called 'rad\.png'; the nearest is 'red\.png'"):
        without(reading, ("rad.png",), repeated=False)
    assert ids(without(reading, (hashed_id("gone.png"),), repeated=False)) == ids(reading)


def test_a_drop_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    reading, file = read(tmp_path), tmp_path / "drop.csv"
    write_drop_list(file, [("red.png", "a reason, with a comma"), (hashed_id("cyan.png"), "")])
    left = without(reading, ("blue.png", "red.png"), repeated=False, file=file)
    assert ids(reading) - ids(left) == {"red.png", "cyan.png", "blue.png"}
    odd = ["=1.png", 'a "b", c.png', "two\nlines.png", os.fsdecode(b"\xe9.png"), "été.png"]
    write_drop_list(file, [(id_, "") for id_ in odd])
    assert read_drop_list(file) == odd
    file.write_bytes(codecs.BOM_UTF8 + b"sample_id,note\r\nred.png,\r\n\r\n")  # from a spreadsheet
    assert read_drop_list(file) == ["red.png"]
    file.write_text("sample_id,reason\n")
    assert without(reading, (), repeated=False, file=file) is reading


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read (No such file"),
        (b"", "has no column sample_id"),
        (b"red.png\nblue.png\n", "has no column sample_id"),
        (b'sample_id\n"red', "is not CSV"),
        (b"sample_id\nrad.png\n", "no sample is called 'rad.png'; the nearest is 'red.png'"),
        (b"\x89PNG\x00\x00", "has no column sample_id"),
    ],
)
def test_a_bad_drop_list_is_one_line_that_names_it(tmp_path: Path, text: bytes | None, said: str) -> None:
    file = tmp_path / "drop.csv"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(UserError) as caught:
        without(read(tmp_path), (), repeated=False, file=file)
    assert f"data.leave_out_file = {file}" in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("order", "keyed"), ("leave_out", ["a.png"]), ("leave_out_file", "a.csv")]
)
def test_a_stream_has_neither(key: str, value: object) -> None:
    with pytest.raises(UserError, match="set streaming=false"):
        validate(DataSettings, {"path": "x", "streaming": True, key: value})
