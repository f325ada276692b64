"""Every fault of a folder is refused by name, in one line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tiny_folders import fault_of, image, jsonl, row

# Each builds a faulty folder; the argument is what the message must say.
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


@fault(r"has metadata\.jsonl and metadata\.csv: keep one")
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


@fault(r"line 1: '/.*(secret\.png|\.\.\.)' points outside")  # long paths are shortened
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


@fault(r"line 1: \\ud83d is not a character")
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


@fault(r"metadata\.jsonl: 1 \.txt file next to images that have a row \(a\.txt\)")
def both_ways(root: Path) -> None:
    image(root / "a.png")
    jsonl(root, row("a.png"))
    (root / "a.txt").write_text("another caption")


@fault(r"the metadata is in a subfolder: train/metadata\.jsonl: name the folder")
def nested_metadata(root: Path) -> None:
    image(root / "train" / "a.png")
    jsonl(root / "train", row("a.png"))


@fault(r"photo\.JXL: this image format is not supported: convert it to PNG or JPEG")
def unreadable_format(root: Path) -> None:
    image(root / "a.png")
    (root / "a.txt").write_text("x")
    (root / "photo.JXL").write_bytes(b"")


@fault(r"data/caf\\xe9\.png: the file name is not UTF-8")
def name_not_utf8(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.png")).write_bytes(b"")


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_folder_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    message, build = FAULTS[name]
    assert fault_of(tmp_path / "data", build, message).hint
