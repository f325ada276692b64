"""Reading a folder of captioned images: what it holds, and every fault refused by name."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ldm.data.folder import Sample, holdout_split, read_folder
from ldm.errors import UserError


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path, "PNG")


def jsonl(root: Path, *rows: dict[str, object]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(name: str, text: object = "a thing", **more: object) -> dict[str, object]:
    return {"file_name": name, "text": text, **more}


def captions_of(root: Path) -> dict[str, tuple[str, ...]]:
    return {sample.sample_id: sample.captions for sample in read_folder(root)}


def test_jsonl_in_its_own_order_with_all_columns(tmp_path: Path) -> None:
    for name in ("b.png", "images/a.png"):
        image(tmp_path / name)
    jsonl(
        tmp_path, row("./images/a.png", "one", captions=["two", "one"], flip=False, tag=3), row("b.png", "x")
    )
    first, second = read_folder(tmp_path)
    assert first == Sample("images/a.png", tmp_path / "images/a.png", ("one", "two"), False, {"tag": 3})
    assert second == Sample("b.png", tmp_path / "b.png", ("x",), None, {})
    assert first.text == "one"
    assert first.path.is_file()


def test_csv_and_parquet_read_as_jsonl_does(tmp_path: Path) -> None:
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


# Each builds a faulty folder; the name of the fault is what the message must say.
Build = Callable[[Path], None]
FAULTS: dict[str, tuple[str, Build]] = {}


def fault(message: str) -> Callable[[Build], Build]:
    def add(build: Build) -> Build:
        FAULTS[build.__name__] = (message, build)
        return build

    return add


@fault(r"data: no such folder")
def missing(root: Path) -> None:
    root.rmdir()


@fault(r"data: no such folder")
def a_file(root: Path) -> None:
    root.rmdir()
    root.write_text("")


@fault(r"data: no images in this folder")
def empty(root: Path) -> None:
    (root / "notes.md").write_text("")


@fault(r"metadata\.jsonl: no rows")
def no_rows(root: Path) -> None:
    jsonl(root)


@fault(r"metadata\.csv: no rows")
def empty_csv(root: Path) -> None:
    (root / "metadata.csv").write_text("")


@fault(r"holds metadata\.jsonl and metadata\.csv: keep one")
def two_formats(root: Path) -> None:
    jsonl(root)
    (root / "metadata.csv").write_text("file_name,text\n")


@fault(r"metadata\.jsonl, line 2: 'b\.png' is not in .*: add the file or remove the row")
def absent_file(root: Path) -> None:
    image(root / "a.png")
    jsonl(root, row("a.png"), row("b.png"))


@fault(r"line 1: '\.\./secret\.png' points outside")
def parent(root: Path) -> None:
    image(root.parent / "secret.png")
    jsonl(root, row("../secret.png"))


@fault(r"line 1: '/.*secret\.png' points outside")
def absolute(root: Path) -> None:
    image(root.parent / "secret.png")
    jsonl(root, row(str(root.parent / "secret.png")))


@fault(r"line 1: 'a\\x00\.png' points outside")
def nul(root: Path) -> None:
    jsonl(root, row("a\0.png"))


@fault(r"line 1: 'a\.png' is a link that leads out")
def link_out(root: Path) -> None:
    image(root.parent / "secret.png")
    (root / "a.png").symlink_to(root.parent / "secret.png")
    jsonl(root, row("a.png"))


@fault(r"data: 'a\.png' is a link that leads out")
def link_out_beside_txt(root: Path) -> None:
    image(root.parent / "secret.png")
    (root / "a.png").symlink_to(root.parent / "secret.png")
    (root / "a.txt").write_text("x")


@fault(r"data: 'a\.txt' is a link that leads out")
def caption_link_out(root: Path) -> None:
    (root.parent / "secret.txt").write_text("secret")
    image(root / "a.png")
    (root / "a.txt").symlink_to(root.parent / "secret.txt")


@fault(r"more: a linked folder is not followed")
def linked_folder(root: Path) -> None:
    image(root.parent / "elsewhere" / "b.png")
    image(root / "a.png")
    (root / "a.txt").write_text("x")
    (root / "more").symlink_to(root.parent / "elsewhere")


@fault(r"line 1: no 'file_name': every row needs it; this one has text")
def no_file_name(root: Path) -> None:
    jsonl(root, {"text": "x"})


@fault(r"line 2: no 'text': fill it in")
def no_text(root: Path) -> None:
    image(root / "a.png")
    jsonl(root, row("a.png"), row("b.png", None))


@fault(r"line 1: empty caption")
def blank_text(root: Path) -> None:
    image(root / "a.png")
    jsonl(root, row("a.png", " \n"))


@fault(r"line 1: 'text' is 7, not text")
def number_as_text(root: Path) -> None:
    image(root / "a.png")
    jsonl(root, row("a.png", 7))


@fault(r"line 1: \\ud83d is no character")
def half_a_character(root: Path) -> None:
    image(root / "a.png")
    jsonl(root, row("a.png", "x \ud83d"))


@fault(r"line 2: 'a\.png' has a row already")
def duplicate(root: Path) -> None:
    image(root / "a.png")
    jsonl(root, row("a.png"), row("./a.png"))


@fault(r"metadata\.jsonl, line 2: not JSON")
def bad_json(root: Path) -> None:
    image(root / "a.png")
    (root / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n{"file_name": \n')


@fault(r"line 1: not a JSON object")
def no_object(root: Path) -> None:
    (root / "metadata.jsonl").write_text('["a.png", "x"]\n')


@fault(r"line 1: 'flip' is 'maybe'")
def bad_flip(root: Path) -> None:
    image(root / "a.png")
    jsonl(root, row("a.png", flip="maybe"))


@fault(r"line 1: 'captions' is 'two'")
def bad_captions(root: Path) -> None:
    image(root / "a.png")
    jsonl(root, row("a.png", captions="two"))


@fault(r"line 2: 'captions' is not a JSON list")
def bad_captions_in_csv(root: Path) -> None:
    image(root / "a.png")
    (root / "metadata.csv").write_text('file_name,text,captions\na.png,x,"[""two"""\n')


@fault(r"metadata\.jsonl, line 2: not UTF-8 at byte 37")
def not_utf8(root: Path) -> None:
    image(root / "a.png")
    good = b'{"file_name": "a.png", "text": "x"}\n'
    assert len(good) == 36
    (root / "metadata.jsonl").write_bytes(good + b"{\xff}")


@fault(r"a\.txt, line 1: not UTF-8 at byte 3: save it as UTF-8")
def txt_not_utf8(root: Path) -> None:
    image(root / "a.png")
    (root / "a.txt").write_bytes("caf\u00e9".encode("latin-1"))


@fault(r"a\.txt: empty caption")
def empty_txt(root: Path) -> None:
    image(root / "a.png")
    (root / "a.txt").write_text("\n")


@fault(r"metadata\.csv, line 2: more cells than columns")
def commas(root: Path) -> None:
    image(root / "a.png")
    (root / "metadata.csv").write_text("file_name,text\na.png,a big, red thing\n")


@fault(r"metadata\.csv, line 2: no 'text'")
def short_row(root: Path) -> None:
    image(root / "a.png")
    (root / "metadata.csv").write_text("file_name,text\na.png\n")


@fault(r"metadata\.csv, line 2: unexpected end of data")
def open_quote(root: Path) -> None:
    (root / "metadata.csv").write_text('file_name,text\na.png,"a thing\n')


@fault(r"metadata\.parquet: not a readable Parquet file")
def bad_parquet(root: Path) -> None:
    (root / "metadata.parquet").write_bytes(b"PAR1")


@fault(r"data: 4 images without a caption \(a\.png, b\.png, c\.png, \.\.\.\): add metadata\.jsonl or a \.txt")
def images_only(root: Path) -> None:
    for name in "abcd":
        image(root / f"{name}.png")


@fault(r"data: 1 image without a caption \(b\.png\)")
def one_without_txt(root: Path) -> None:
    image(root / "a.png")
    image(root / "b.png")
    (root / "a.txt").write_text("x")


@fault(r"data: 1 \.txt file without an image \(b\.txt\)")
def txt_alone(root: Path) -> None:
    image(root / "a.png")
    (root / "a.txt").write_text("x")
    (root / "b.txt").write_text("x")


@fault(r"metadata\.jsonl: 2 images without a row \(b\.png, c/d\.png\): add rows or move them away")
def unlisted(root: Path) -> None:
    for name in ("a.png", "b.png", "c/d.png"):
        image(root / name)
    jsonl(root, row("a.png"))


@fault(r"metadata\.jsonl: 1 \.txt file beside images that have a row \(a\.txt\)")
def both_ways(root: Path) -> None:
    image(root / "a.png")
    jsonl(root, row("a.png"))
    (root / "a.txt").write_text("another caption")


@fault(r"the metadata lies deeper, in train/metadata\.jsonl: name the folder")
def nested_metadata(root: Path) -> None:
    image(root / "train" / "a.png")
    jsonl(root / "train", row("a.png"))


@fault(r"photo\.HEIC: this image format is not read: convert it to PNG or JPEG")
def unreadable_format(root: Path) -> None:
    image(root / "a.png")
    (root / "a.txt").write_text("x")
    (root / "photo.HEIC").write_bytes(b"")


@fault(r"data/caf\\xe9\.png: the file name is not UTF-8")
def name_not_utf8(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.png")).write_bytes(b"")


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_folder_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    message, build = FAULTS[name]
    root = tmp_path / "data"
    root.mkdir()
    build(root)
    with pytest.raises(UserError, match=message) as error:
        read_folder(root)
    assert error.value.mend
    assert "\n" not in str(error.value)


def some(num_samples: int) -> list[Sample]:
    return [Sample(f"{i}.png", Path(f"{i}.png"), ("x",)) for i in range(num_samples)]


def ids(samples: list[Sample]) -> list[str]:
    return [sample.sample_id for sample in samples]


def test_holdout_depends_on_the_sample_alone() -> None:
    samples = some(2000)
    train, held_out = holdout_split(samples, 0.1, seed=5)
    assert 150 < len(held_out) < 250
    assert sorted(ids(train) + ids(held_out)) == sorted(ids(samples))
    assert ids(train) == sorted(ids(train), key=ids(samples).index)
    fewer = holdout_split(samples[::-3], 0.1, seed=5)[1]
    assert set(ids(fewer)) == set(ids(held_out)) & set(ids(samples[::-3]))
    assert set(ids(held_out)) < set(ids(holdout_split(samples, 0.2, seed=5)[1]))
    assert ids(held_out) != ids(holdout_split(samples, 0.1, seed=6)[1])
    assert holdout_split(samples, 0.0, seed=5) == (samples, [])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_holdout_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(UserError, match="out of range"):
        holdout_split(some(3), fraction, seed=0)
