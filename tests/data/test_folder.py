"""Reading a folder of captioned images, and the split into training and held-out samples."""

from pathlib import Path

import pytest

from ldm.data.buckets import Placement
from ldm.data.prepare import BucketedSample, DataSettings, holdout_split
from ldm.data.sample import FileImage, ImageInfo, Sample
from ldm.data.sources.image_folder import read_folder
from ldm.errors import UserError
from tests.support.tiny_folders import image, jsonl, row


def captions_of(root: Path) -> dict[str, tuple[str, ...]]:
    return {sample.sample_id: sample.captions for sample in read_folder(root)}


def test_jsonl_in_its_own_order_with_all_columns(tmp_path: Path) -> None:
    for name in ("b.png", "images/a.png"):
        image(tmp_path / name)
    jsonl(
        tmp_path, row("./images/a.png", "one", captions=["two", "one"], flip=False, tag=3), row("b.png", "x")
    )
    first, second = read_folder(tmp_path)
    assert first == Sample(
        "images/a.png", FileImage(tmp_path / "images/a.png"), ("one", "two"), False, extra={"tag": 3}
    )
    assert second == Sample("b.png", FileImage(tmp_path / "b.png"), ("x",))
    assert first.text == "one"
    assert first.open().size


def test_csv_and_parquet_are_read_like_jsonl(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {
        "file_name": ["b.png", "a.png"],
        "text": ['a "big", red\nthing', "猫 é"],
        "captions": [["two"], None],
        "flip": [True, False],
    }
    cells = "\ufefffile_name,text,captions,flip\r\n"
    cells += 'b.png,"a ""big"", red\r\nthing","[""two""]",True\r\na.png,猫 é,,FALSE\r\n'
    for kind in ("csv", "parquet"):
        (tmp_path / kind).mkdir()
        for name in columns["file_name"]:
            image(tmp_path / kind / name)
    (tmp_path / "csv" / "metadata.csv").write_bytes(cells.encode())
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "parquet" / "metadata.parquet")
    for kind in ("csv", "parquet"):
        samples = read_folder(tmp_path / kind)
        assert [sample.sample_id for sample in samples] == ["b.png", "a.png"]
        assert [sample.captions for sample in samples] == [('a "big", red\nthing', "two"), ("猫 é",)]
        assert [sample.may_flip for sample in samples] == [True, False]


def test_another_caption_column(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    jsonl(tmp_path, {"file_name": "a.png", "prompt": "hello"})
    assert read_folder(tmp_path, caption_column="prompt")[0].captions == ("hello",)
    with pytest.raises(UserError, match=r"line 1: no 'text': .*this one has file_name, prompt"):
        read_folder(tmp_path)


def test_txt_files_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/c.png", "a/b.d.webp"):
        image(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_bytes(f"\ufeff {name}\r\nmore \r\n".encode())
    (tmp_path / "README.txt").write_text("about these images")
    (tmp_path / ".hidden.png").write_text("not an image")
    expected = {name: (f"{name}\nmore",) for name in ("a/b.d.webp", "a/c.png", "b.JPG")}
    assert captions_of(tmp_path) == expected
    assert list(captions_of(tmp_path)) == list(expected)


def test_byte_order_mark_line_ends_and_composed_form(tmp_path: Path) -> None:
    image(tmp_path / "猫 e\u0301.png")
    text = '\ufeff{"file_name": "猫 e\u0301.png", "text": " cafe\u0301 \u2028 au lait "}\r\n\r\n'
    (tmp_path / "metadata.jsonl").write_bytes(text.encode())
    assert captions_of(tmp_path) == {"猫 e\u0301.png": ("caf\u00e9 \u2028 au lait",)}


def test_the_folder_is_left_as_it_was(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    jsonl(tmp_path, row("a.png"))
    before = sorted(tmp_path.rglob("*"))
    read_folder(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def some(num_samples: int) -> list[BucketedSample]:
    """Samples with different images."""
    placement = Placement(8, 8, 8, 8, ((0, 0),))
    return [
        BucketedSample(
            Sample(f"{i}.png", Path(f"{i}.png"), ("x",)), ImageInfo(f"{i:064x}", 8, 8, i), placement
        )
        for i in range(num_samples)
    ]


def ids(placed: list[BucketedSample]) -> list[str]:
    return [one.sample.sample_id for one in placed]


def test_holdout_depends_only_on_the_sample() -> None:
    placed = some(2000)
    train, held_out = holdout_split(placed, 0.1, seed=5)
    assert 150 < len(held_out) < 250
    assert sorted(ids(train) + ids(held_out)) == sorted(ids(placed))
    assert ids(train) == sorted(ids(train), key=ids(placed).index)
    fewer = holdout_split(placed[::-3], 0.1, seed=5)[1]
    assert set(ids(fewer)) == set(ids(held_out)) & set(ids(placed[::-3]))
    assert set(ids(held_out)) < set(ids(holdout_split(placed, 0.2, seed=5)[1]))
    assert ids(held_out) != ids(holdout_split(placed, 0.1, seed=6)[1])
    assert holdout_split(placed, 0.0, seed=5) == (placed, [])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_holdout_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match="holdout_fraction"):
        DataSettings.model_validate({"path": "x", "holdout_fraction": fraction})
