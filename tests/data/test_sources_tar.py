"""Captioned images in WebDataset tars, whole, faulty and hostile."""

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ldm.data.sources.webdataset import MAX_CAPTION_BYTES
from ldm.errors import UserError
from tests.support.tiny_sources import captioned, json_text, outcomes, png, read, tar


def test_files_that_share_a_name_are_a_sample(tmp_path: Path) -> None:
    members = {
        "train/": {"type": tarfile.DIRTYPE},
        "train/a.png": png(1),
        "train/a.txt": "\ufeff a cat\r\n",
        "b.JPG": png(2),
        "b.json": json_text(caption="a dog", licence="CC0"),
        "train/a.json": json_text(caption="not this", licence="CC-BY"),
        "train/a.cls": "7",
        "._a.png": "a file system's own",
    }
    path = tar(tmp_path / "0.tar", members)
    reading = read(path, caption_column="caption")
    assert reading.refusals == []
    first, second = reading.samples
    assert (first.sample_id, first.captions, first.extra) == (
        "0.tar/train/a",
        ("a cat",),
        {"licence": "CC-BY"},
    )
    assert (second.sample_id, second.captions, second.extra) == ("0.tar/b", ("a dog",), {"licence": "CC0"})
    assert (first.image.read(), second.image.read()) == (png(1), png(2))
    assert "'text'" in str(outcomes(read(path))["0.tar/b"])


def test_a_folder_of_tars(tmp_path: Path) -> None:
    tar(tmp_path / "x" / "1.tar", captioned("a", "b"))
    tar(tmp_path / "0.tar", captioned("a"))
    (tmp_path / "0_stats.json").write_text("{}")
    assert list(outcomes(read(tmp_path))) == ["0.tar/a", "x/1.tar/a", "x/1.tar/b"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["0.tar", "0_stats.json", "1.tar", "x"]
    (tmp_path / "2.tar.gz").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"compressed tars are not supported \(2\.tar\.gz\): decompress it first"
    ):
        read(tmp_path)


def test_long_and_foreign_names(tmp_path: Path) -> None:
    name = f"{'deep/' * 40}猫 é"
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=kind) as file:
            for suffix, data in ((".png", png()), (".txt", b"a cat")):
                info = tarfile.TarInfo(name + suffix)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        sample = read(tmp_path / "a.tar").samples[0]
        assert sample.sample_id == f"a.tar/{name}"
        assert sample.image.read() == png()


def test_an_image_can_be_pickled_and_names_its_member(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", captioned("a", "b"))
    image = read(path).samples[1].image
    again = pickle.loads(pickle.dumps(image))
    assert len(pickle.dumps(image)) < 1000
    assert again == image
    assert again.read() == png(1)
    assert image.name == "a.tar: b.png"
    assert image.stamp() != read(path).samples[0].image.stamp()
    status = path.stat()
    assert image.stamp()[1:] == (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"a\.tar: b\.png: cut off"):
        image.read()


FAULTY = {
    "a.txt": "no picture",
    "b.png": png(),
    "c.png": png(),
    "c.txt": "caf\u00e9".encode("latin-1"),
    "d.png": png(),
    "d.json": "[" * 100_000,
    "e.png": png(),
    "e.jpg": png(),
    "e.txt": "two",
    "f.jxl": b"",
    "f.txt": "a telephone's",
    "g.png": png(),
    "g.txt": "x" * (MAX_CAPTION_BYTES + 1),
    "h.v2.png": png(),
    "i.png": png(),
    "i.json": '{"text": 7}',
    "j.png": png(),
    "j.json": '["a"]',
    "good.png": png(),
    "good.txt": "good",
}
REASONS = {
    "a": "a.tar: a: no image, only txt",
    "b": "a.tar: b: no caption",
    "c": "a.tar: c.txt: not UTF-8 at byte 3",
    "d": "a.tar: d.json: not JSON",
    "e": "a.tar: e: several images (jpg, png, txt): set image_column",
    "f": "a.tar: f: this image format is not supported",
    "g": "a.tar: g.txt: 1048577 bytes are too many for a caption",
    "h": "a.tar: h: no image, only v2.png: files belong together up to the first dot",
    "i": "a.tar: i: 'text' is 7, not text",
    "j": "a.tar: j.json: not a JSON object",
}


def test_a_bad_sample_is_refused_and_the_others_are_used(tmp_path: Path) -> None:
    reading = read(tar(tmp_path / "a.tar", FAULTY))
    assert [sample.sample_id for sample in reading.samples] == ["a.tar/good"]
    assert [refusal.sample_id for refusal in reading.refusals] == [f"a.tar/{key}" for key in REASONS]
    for refusal, reason in zip(reading.refusals, REASONS.values(), strict=True):
        assert reason in refusal.reason
        assert "\n" not in refusal.reason
    assert "a.tar/e" in outcomes(read(tmp_path / "a.tar", image_column="jpg"))
    assert len(read(tmp_path / "a.tar", image_column="jpg").samples) == 2


HOSTILE: dict[str, tuple[str, Any]] = {
    "/etc/a.png": ("'/etc/a.png' leads out of the tar", png()),
    "../a.png": ("'../a.png' leads out of the tar", png()),
    "x/../../a.png": ("leads out of the tar", png()),
    "soft.png": ("'soft.png' is a link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
    "hard.png": ("is a link", {"type": tarfile.LNKTYPE, "linkname": "good.png"}),
    "device.png": ("is not a regular file", {"type": tarfile.CHRTYPE}),
    "pipe.png": ("is not a regular file", {"type": tarfile.FIFOTYPE}),
    "two\nlines.png": (r"'two\\nlines.png' is not a UTF-8 name", png()),
    "bad\udcff.png": (r"'bad\\udcff.png' is not a UTF-8 name", png()),
    "..": ("'..' leads out of the tar", png()),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_member_is_refused_by_name(tmp_path: Path, name: str) -> None:
    reason, member = HOSTILE[name]
    members = {**captioned("good"), name: member, f"{name.partition('.')[0] or 'x'}.txt": "a caption"}
    reading = read(tar(tmp_path / "a.tar", members))
    assert [sample.sample_id for sample in reading.samples] == ["a.tar/good"]
    found = [refusal.reason for refusal in reading.refusals if reason.replace("\\\\", "\\") in refusal.reason]
    assert len(found) == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tar"]
    assert all("\n" not in r.reason + r.sample_id for r in reading.refusals)


def test_a_name_that_occurs_twice(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", captioned("a", "b"))
    with tarfile.open(tmp_path / "a.tar", "a") as file:
        file.addfile(tarfile.TarInfo("a.txt"))
    assert outcomes(read(tmp_path / "a.tar"))["a.tar/b"] == ("a b",)
    assert "'a.txt' occurs twice" in str(outcomes(read(tmp_path / "a.tar"))["a.tar/a"])


def header_with(path: Path, member: int, **fields: int) -> None:
    """Overwrite the size in a member's header, with a matching checksum."""
    with tarfile.open(path) as file:
        info = file.getmembers()[member]
    data = bytearray(path.read_bytes())
    info.size = fields["size"]
    data[info.offset : info.offset + 512] = info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(data)


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "cut off":
        path.write_bytes(data[:1600])
    if kind == "garbage between members":
        path.write_bytes(data[:1024] + b"x" * 512 + data[1536:])
    if kind == "two joined":
        path.write_bytes(data + data)
    if kind == "negative size":
        header_with(path, 1, size=-512)  # which makes it its own next member
    if kind == "no tar":
        path.write_bytes(b"hello" * 1000)
    if kind == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize(
    "kind", ["cut off", "garbage between members", "two joined", "negative size", "no tar", "empty"]
)
@pytest.mark.timeout(20)
def test_a_damaged_tar_is_refused_whole(tmp_path: Path, kind: str) -> None:
    path = tar(tmp_path / "a.tar", captioned("a", "b", "c"))
    damage(path, kind)
    with pytest.raises(UserError, match=r"a\.tar: not a readable tar \(.+\): download it again") as error:
        read(path)
    assert "\n" not in str(error.value)
