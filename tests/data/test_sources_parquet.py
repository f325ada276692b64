"""Captioned images in parquet files and in saved datasets."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from ldm.errors import UserError
from tests.support.tiny_sources import outcomes, parquet, png, raw_text, read


def columns(num_rows: int = 5) -> dict[str, Any]:
    return {
        "image": [{"bytes": png(row), "path": f"{row}.png"} for row in range(num_rows)],
        "text": [f"number {row}" for row in range(num_rows)],
        "licence": ["CC0"] * num_rows,
        "large": [b"not read"] * num_rows,
    }


def test_rows_over_several_row_groups_and_files(tmp_path: Path) -> None:
    for name in ("b", "a"):
        parquet(tmp_path / "data" / f"{name}.parquet", columns())
    reading = read(tmp_path / "data")
    assert [s.sample_id for s in reading.samples] == [f"{n}.parquet/{i}" for n in "ab" for i in range(5)]
    assert [s.image.read() for s in reading.samples] == 2 * [png(row) for row in range(5)]
    assert [s.captions for s in reading.samples][:2] == [("number 0",), ("number 1",)]
    assert reading.samples[0].extra == {"licence": "CC0"}
    assert outcomes(read(tmp_path / "data" / "a.parquet")).keys() == {f"a.parquet/{i}" for i in range(5)}


def test_plain_bytes_named_columns_and_several_captions(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet",
        {
            "picture": [png(1), png(2)],
            "prompt": [["one", "first", "one"], ["two"]],
            "captions": [["more"], []],
            "flip": [False, None],
        },
    )
    first, second = read(path, image_column="picture", caption_column="prompt").samples
    assert (first.captions, first.may_flip, first.extra) == (("one", "first", "more"), False, {})
    assert (second.captions, second.may_flip) == (("two",), None)
    assert second.image.read() == png(2)
    with pytest.raises(
        UserError, match=r"a\.parquet: no column 'image': set image_column to one of the columns: picture"
    ):
        read(path)
    with pytest.raises(UserError, match=r"'prompt' holds list.*: set image_column to one with images"):
        read(path, image_column="prompt", caption_column="flip")


def test_an_image_can_be_pickled_and_names_its_row(tmp_path: Path) -> None:
    image = read(parquet(tmp_path / "a.parquet", columns())).samples[3].image
    again = pickle.loads(pickle.dumps(image))
    assert len(pickle.dumps(image)) < 1000
    assert again == image
    assert again.read() == png(3)
    assert image.name == "a.parquet row 3"
    stamp = image.stamp()
    assert stamp is not None
    assert stamp[0] == f"{(tmp_path / 'a.parquet').resolve()}#image/3"
    parquet(tmp_path / "a.parquet", columns(4))
    assert image.stamp() != stamp
    assert image.read() == png(3)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(UserError, match="not a readable Parquet file"):
        image.read()


def faulty() -> dict[str, Any]:
    bytes_of = [png(0), png(1), None, None, png(4), png(5)]
    return {
        "image": [{"bytes": data, "path": None} for data in bytes_of[:3]]
        + [None]
        + [{"bytes": data, "path": None} for data in bytes_of[4:]],
        "text": raw_text([b"fine", b"caf\xe9", b"x", b"x", b"", b"last"]),
    }


def test_a_bad_row_is_refused_and_the_others_are_used(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", faulty())
    assert outcomes(read(path)) == {
        "a.parquet/0": ("fine",),
        "a.parquet/1": "a.parquet row 1: 'text' is not UTF-8 at byte 3: save it as UTF-8",
        "a.parquet/2": "a.parquet row 2: no image bytes: remove the row",
        "a.parquet/3": "a.parquet row 3: no image bytes: remove the row",
        "a.parquet/4": "a.parquet row 4: no 'text': fill it in",
        "a.parquet/5": ("last",),
    }
    assert read(path).num_found == 6


def test_a_path_in_place_of_the_bytes_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    rows = {"image": [{"bytes": b"", "path": str(tmp_path / "secret.png")}], "text": ["x"]}
    sample = read(parquet(tmp_path / "a.parquet", rows)).samples[0]
    with pytest.raises(UserError, match="row 0: only the path"):
        sample.image.read()


def test_files_named_by_their_split(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "val-00000-of-00001", "test/0"):
        parquet(tmp_path / f"{name}.parquet", columns(1))
    assert len(read(tmp_path).samples) == 2
    assert list(outcomes(read(tmp_path, split="validation"))) == ["val-00000-of-00001.parquet/0"]
    assert list(outcomes(read(tmp_path, split="test"))) == ["test/0.parquet/0"]
    with pytest.raises(
        UserError, match="no files of the split 'other': set split to one of test, train, valid"
    ):
        read(tmp_path, split="other")
    parquet(tmp_path / "more.parquet", columns(1))
    assert len(read(tmp_path, split="other").samples) == 5


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file") as error:
        read(tmp_path / "a.parquet")
    assert "\n" not in str(error.value)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the splits `train` and `test`, as `save_to_disk` writes it."""
    import datasets
    import pyarrow

    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "n": datasets.Value("int64")}
    )
    datasets.disable_progress_bars()

    def split(table: dict[str, Any]) -> Any:
        rows = len(table["image"])
        arrow = pyarrow.table({**table, "n": list(range(rows))}, schema=features.arrow_schema)
        return datasets.Dataset(datasets.table.InMemoryTable(arrow))

    plain = {name: columns(3)[name] for name in ("image", "text")}
    bad = faulty()
    bad["image"][2] = None  # `datasets` cannot save an image without bytes and path
    datasets.DatasetDict({"train": split(bad), "test": split(plain)}).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_dataset_and_its_splits(saved: Path) -> None:
    reading = read(saved, split="test")
    assert outcomes(reading) == {f"test/{row}": (f"number {row}",) for row in range(3)}
    image = pickle.loads(pickle.dumps(reading.samples[2].image))
    assert len(pickle.dumps(image)) < 1000
    assert image.read() == png(2)
    assert image.name == f"{saved} test row 2"
    assert image.stamp() == reading.samples[2].image.stamp() != reading.samples[1].image.stamp()
    assert reading.samples[2].extra == {"n": 2}
    assert list(outcomes(read(saved))) == ["train/0", "train/5", "train/1", "train/2", "train/3", "train/4"]
    assert "train row 1: 'text' is not UTF-8 at byte 3" in str(outcomes(read(saved))["train/1"])
    assert "train row 3: no image bytes" in str(outcomes(read(saved))["train/3"])
    shutil.copytree(saved / "test", saved.parent / "alone")
    assert len(read(saved.parent / "alone").samples) == 3
    with pytest.raises(UserError, match="unknown split 'tests': did you mean 'test'"):
        read(saved, split="tests")


def test_a_missing_dataset_is_named(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset_dict.json is not valid JSON \(.*\)") as error:
        read(tmp_path / "saved")
    assert "\n" not in str(error.value)
