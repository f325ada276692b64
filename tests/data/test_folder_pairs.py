"""Matching the names of metadata, images and captions, and files that are not what they should be."""

import errno
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ldm.data.masks import with_masks
from ldm.data.sources.image_folder import read_folder
from ldm.data.sources.reading import SourceSettings, kind_of
from ldm.errors import UserError
from tests.support.tiny_folders import fault_of, image, jsonl, row
from tests.support.tiny_sources import outcomes, png, read, tar

NFC, NFD = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))

Build = Callable[[Path], object]


def swapped(root: Path) -> None:
    image(root / "a.png")
    (root / "metadata.csv").write_text(f'text,file_name\na.png,"{"a red apple, " * 40}"\n')


def csv(text: str) -> Build:
    return lambda root: (image(root / "a.png"), (root / "metadata.csv").write_text(text))


def listed(make: Build) -> Build:
    """A folder with a row for `a.png`, which `make` puts there."""
    return lambda root: (jsonl(root, row("a.png")), make(root / "a.png"))


def beside(*names: str) -> Build:
    """A folder of images and captions, by suffix."""

    def build(root: Path) -> None:
        for name in names:
            image(root / name) if name.endswith("g") else (root / name).write_text("x")

    return build


FAULTS: dict[str, tuple[str, Build]] = {
    "swapped": (r"line 2: 'a red apple, .{60,70}\.\.\.' is too long .*columns .* are swapped", swapped),
    "long path": (
        r"is too long for a file name",
        lambda root: jsonl(root, row("a/" * 2500 + "a.png")),
    ),
    "broken link": (
        r"'a\.png' in .* is a broken link: put the file",
        listed(lambda path: path.symlink_to("b")),
    ),
    "loop": (r"'a\.png' in .* is a broken link", listed(lambda path: path.symlink_to("a.png"))),
    "pipe": (r"'a\.png' in .* is a pipe, not a file", listed(os.mkfifo)),
    "folder": (r"'a\.png' in .* is a folder, not a file", listed(Path.mkdir)),
    "two sidecars": (
        r"a\.TXT and a\.txt are captions of the same image: rename or remove",
        beside("a.png", "a.txt", "a.TXT"),
    ),
    "two images": (
        r"a\.jpg and a\.png share one \.txt file: rename or remove",
        beside("a.jpg", "a.png", "a.txt"),
    ),
    "csv column twice": (
        r"metadata\.csv, line 1: 'text' occurs twice",
        csv("file_name,text, text\na.png,x,y\n"),
    ),
    "json key twice": (
        r"metadata\.jsonl, line 1: 'text' occurs twice: keep one",
        lambda root: (root / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x", "text": "y"}'),
    ),
    "semicolons": (
        r"metadata\.csv: its columns are separated by semicolons",
        csv("file_name;text\na.png;x\n"),
    ),
    "tabs": (r"metadata\.csv: its columns are separated by tabs", csv("file_name\ttext\na.png\tx\n")),
    "nearest": (
        r"no 'file_name': .* has filename, text: .* image_column \(--image-column\) to filename",
        csv("filename,text\na.png,x\n"),
    ),
    "no caption": (
        r"no 'text': .* set caption_column \(--caption-column\) to prompt",
        csv("file_name,prompt\na.png,x\n"),
    ),
    "raw": (r"b\.CR3: this image format is not supported", beside("a.png", "a.txt", "b.CR3")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_in_one_short_line(tmp_path: Path, name: str) -> None:
    message, build = FAULTS[name]
    assert len(str(fault_of(tmp_path / "data", build, message))) < 400


def test_a_folder_that_is_not_accessible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path / "inside/a.png")
    jsonl(tmp_path, row("inside/a.png"))
    stat, lstat = Path.stat, os.lstat

    def refuse(path: Path) -> None:
        if path.parent.name == "inside":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def closed(path: Path, **options: bool) -> os.stat_result:
        refuse(path)
        return stat(path, **options)

    def closed_too(path: Path | str, **options: bool) -> os.stat_result:
        refuse(Path(path))
        return lstat(path, **options)

    monkeypatch.setattr(Path, "stat", closed)
    monkeypatch.setattr(os, "lstat", closed_too)
    for source in (tmp_path, tmp_path / "inside/a.png", tmp_path / "inside"):
        with pytest.raises(UserError, match=r"inside.*: Permission denied: make its folder"):
            settings = SourceSettings(path=str(source))
            assert kind_of(settings) == "folder"
            read_folder(source)


def test_unicode_forms_of_a_name_are_equal(tmp_path: Path) -> None:
    image(tmp_path / f"txt/{NFD}.png")
    (tmp_path / f"txt/{NFC}.txt").write_text("summer")
    assert read_folder(tmp_path / "txt")[0].captions == ("summer",)
    image(tmp_path / f"rows/{NFD}/{NFD}.png")
    jsonl(tmp_path / "rows", row(f"{NFC}/{NFC}.png", "summer"))
    (sample,) = read_folder(tmp_path / "rows")
    assert sample.sample_id == f"{NFC}/{NFC}.png" and sample.open().size == (2, 2)
    jsonl(tmp_path / "rows", row(f"{NFC}/{NFC}.png"), row(f"{NFD}/{NFD}.png"))
    with pytest.raises(UserError, match="has a row already"):
        read_folder(tmp_path / "rows")
    image(tmp_path / f"masks/{NFD}/{NFD}.png")
    assert with_masks([sample], tmp_path / "masks")[0].loss_mask


def test_without_file_name_the_column_image_has_the_names(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("image , text\na.png,x\n")
    (sample,) = read(tmp_path).samples
    assert (sample.sample_id, sample.captions, sample.extra) == ("a.png", ("x",), {})
    (tmp_path / "metadata.csv").write_text("file_name,image,text\na.png,b.png,x\n")
    assert read(tmp_path).samples[0].extra == {"image": "b.png"}


@pytest.mark.parametrize(
    ("suffix", "kind"), [("jfif", "JPEG"), ("JPE", "JPEG"), ("jp2", "JPEG2000"), ("ppm", "PPM")]
)
def test_further_suffixes_are_images(tmp_path: Path, suffix: str, kind: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{suffix}", kind)
    with pytest.raises(UserError, match="1 image without a caption"):
        read_folder(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    assert read_folder(tmp_path)[0].open().size == (8, 8)


def test_documents_in_a_tar_are_not_samples(tmp_path: Path) -> None:
    about = {name: "about" for name in ("README.txt", "LICENSE", "more/readme.md")}
    path = tar(tmp_path / "a.tar", {**about, "x.png": png(), "x.txt": "an x", "credits.png": png()})
    assert outcomes(read(path)) == {
        "a.tar/x": ("an x",),
        "a.tar/credits": "a.tar: credits: no caption: add a .txt or .json file of this name",
    }
    twice = tar(tmp_path / "b.tar", {"x.png": png(), "x.json": '{"text": "x", "text": "y"}'})
    assert "'text' occurs twice" in str(outcomes(read(twice)))
