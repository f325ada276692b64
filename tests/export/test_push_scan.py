"""The search for private data in files that are about to be sent."""

import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from ldm.export.hub.leaks import scan
from ldm.export.hub.outgoing import OutgoingFile, list_outgoing
from ldm.models.loading.source import EMBEDDED

TOKEN = "hf_" + "Zz9" * 10


def found_in(path: Path) -> list[str]:
    """The leaks in one file, without its name."""
    file = OutgoingFile(path.name, path, path.stat().st_size)
    return [str(leak).removeprefix(path.name + " ") for leak in scan([file])]


def found_in_text(folder: Path, text: str) -> list[str]:
    (folder / "README.md").write_text(text)
    return found_in(folder / "README.md")


# Text files and headers


def test_tokens_are_found_and_not_repeated(tmp_path: Path) -> None:
    """Every kind of token is tested in `test_redaction`."""
    assert found_in_text(tmp_path, f"first\nkey: {TOKEN}.\n") == ["(line 2): a token, hf_Z..."]


def test_passwords_in_addresses_and_in_the_environment_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found_in_text(tmp_path, "https://bob:pa55word@host/x")[0] == "(line 1): a token, bob:..."
    assert found_in_text(tmp_path, "it is swordfish-swordfish") == []
    monkeypatch.setenv("MY_API_KEY", "swordfish-swordfish")
    assert found_in_text(tmp_path, "it is swordfish-swordfish") == ["(line 1): a token, swor..."]


@pytest.mark.parametrize(
    "path",
    [
        "/home/bob/data",
        "/Users/bob/x.png",
        "/mnt/nas/set-1",
        "/var/cache/x",
        "file:///srv/x",
        "C:\\Users\\bob",
        "D:\\\\data\\\\set",
    ],
)
def test_absolute_paths_are_found(tmp_path: Path, path: str) -> None:
    for text in (
        path,
        f'"base": "{path}"',
        f"trained on `{path}`",
        f'{{"log": "first\\n{path}"}}',
        f"dir:{path}",
    ):
        assert found_in_text(tmp_path, text) == [f"(line 1): an absolute path, {path}"], text


def test_any_top_level_folder_of_this_machine_is_found(tmp_path: Path) -> None:
    top = next(entry for entry in sorted(Path("/").iterdir()) if entry.is_dir() and len(entry.name) > 1)
    assert found_in_text(tmp_path, f"{top}/bob") == [f"(line 1): an absolute path, {top}/bob"]


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/home/bob and http://x.org/data/y",
        "./data/x, ../tmp/y, ~/data/z, data/home/x, and/or, 1/255, km/h",
        "runs/home/x with s/tmp/x/ and a ratio of 3/4",
        "ldm generate --model user/name@main, @bob, a@b, icon @ 2",
        "commit 0123456789abcdef0123456789abcdef01234567, sha256 " + "ab" * 32,
        "hf_hub_download, hf_transfer, hf_transformers, sk-learn, ghp_short, C: the drive, c:\\d",
    ],
)
def test_ordinary_text_is_left_alone(tmp_path: Path, text: str) -> None:
    assert found_in_text(tmp_path, text) == []


def test_e_mail_addresses_are_found_but_in_licences(tmp_path: Path) -> None:
    assert found_in_text(tmp_path, "ask bob.b@mail.example.org") == [
        "(line 1): an e-mail address, bob.b@mail.example.org"
    ]
    (tmp_path / "LICENSE").write_text("Copyright bob@example.org, /home/bob/x")
    assert found_in(tmp_path / "LICENSE") == ["(line 1): an absolute path, /home/bob/x"]


def test_only_a_few_of_a_kind_are_reported(tmp_path: Path) -> None:
    assert len(found_in_text(tmp_path, "\n".join(f"/home/bob/{i}" for i in range(50)))) == 3


def test_the_header_of_safetensors_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(
        {"w": torch.ones(2)}, path, metadata={"ss": json.dumps({"dir": "a\n/home/bob/set"}), "title": "fine"}
    )
    assert found_in(path) == ["(header): an absolute path, /home/bob/set"]
    save_file({"w": torch.tensor(list(b"/home/bob/set"), dtype=torch.uint8)}, path)
    assert found_in(path) == []  # numbers


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04 a zip", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"[]"]
)
def test_a_file_that_only_has_the_name_of_safetensors_is_found(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    assert found_in(tmp_path / "model.safetensors") == ["(header): it is not a safetensors file"]


# Images


def images(folder: Path, exif: Image.Exif) -> Iterator[Path]:
    """An image of each format with this EXIF data."""
    for kind in ("png", "jpg", "webp"):
        path = folder / f"a.{kind}"
        Image.new("RGB", (8, 8)).save(path, exif=exif)
        yield path


def test_the_location_of_a_photograph_is_found(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    exif[0x8825] = exif.get_ifd(0x8825)
    for path in images(tmp_path, exif):
        assert found_in(path) == ["(GPS): the location where it was taken"], path
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta><exif:GPSLatitude>52,31N</exif:GPSLatitude></x:xmpmeta>")
    Image.new("RGB", (8, 8)).save(tmp_path / "xmp.png", pnginfo=text)
    assert found_in(tmp_path / "xmp.png") == ["(GPS): the location where it was taken"]


def test_the_owner_of_a_photograph_is_found(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x013B] = "Camera & Co", "Bob"
    exif[0x8769] = {0xA431: "12345", 0x9286: b"UNICODE\0" + "in /home/bob/x".encode("utf-16-be")}
    for path in images(tmp_path, exif):
        assert found_in(path) == [
            "(EXIF): its owner or camera, Make, Artist, BodySerialNumber",
            "(EXIF 0x9286): an absolute path, /home/bob/x",
        ], path


PERSONAL = {
    "Make": 0x010F, "Model": 0x0110, "Artist": 0x013B, "HostComputer": 0x013C, "DateTimeOriginal": 0x9003,
    "XPAuthor": 0x9C9D, "CameraOwnerName": 0xA430, "BodySerialNumber": 0xA431, "LensSerialNumber": 0xA435,
}  # fmt: skip
IN_THE_SECOND_TABLE = ("DateTimeOriginal", "CameraOwnerName", "BodySerialNumber", "LensSerialNumber")


@pytest.mark.parametrize("name", PERSONAL)
def test_every_personal_tag_is_found(tmp_path: Path, name: str) -> None:
    exif, value = Image.Exif(), b"B\0o\0b\0" if name == "XPAuthor" else "Bob"
    if name in IN_THE_SECOND_TABLE:
        exif[0x8769] = {PERSONAL[name]: value}
    else:
        exif[PERSONAL[name]] = value
    for path in images(tmp_path, exif):
        assert found_in(path) == [f"(EXIF): its owner or camera, {name}"], path


def test_metadata_after_the_pixels_is_read_too(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("parameters", "a red apple")
    said = json.dumps({"model": f"/home/bob/x {TOKEN}"})
    text.add(b"zTXt", b"ldm\0\0" + zlib.compress(said.encode()), after_idat=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=text)
    assert found_in(tmp_path / "a.png") == [
        "(ldm): a token, hf_Z...",
        "(ldm): an absolute path, /home/bob/x",
    ]


def test_a_broken_image_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    assert found_in(tmp_path / "a.png") == ["(image): it cannot be read"]


# Real models


def test_the_embedded_model_may_be_sent_completely() -> None:
    outgoing = list_outgoing(EMBEDDED["emoji"])
    assert outgoing.left_out == ()
    assert scan(outgoing.files) == []


def test_the_vocabulary_of_clip_holds_nothing_that_looks_private(tmp_path: Path) -> None:
    source = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(source.read_bytes()).decode().splitlines()[:48896]  # as CLIP does
    (tmp_path / "merges.txt").write_text("\n".join(lines))
    (tmp_path / "vocab.json").write_text(
        json.dumps({"".join(line.split()): i for i, line in enumerate(lines)})
    )
    assert found_in(tmp_path / "merges.txt") == found_in(tmp_path / "vocab.json") == []
