"""PNG, JPEG and WebP: the same settings and marks in each, and pixels that a mark does not change."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sd_parsers import ParserManager

from ldm.errors import LdmWarning, UserError
from ldm.io.image_metadata import COMMENT_KEY, ImageFormat, image_format, pixel_data_hash, read_metadata
from ldm.io.image_writing import SUFFIXES, check_encoded
from ldm.io.xmp import xmp_properties
from ldm.pipeline.record import encode_with_record, has_record, infotext, read_settings
from ldm.provenance.marks import EDITED, MADE, SOURCE_TYPES, WORDS, mark_texts, source_type_in
from tests.support.tiny_images import photo, pixels

FORMATS: tuple[ImageFormat, ...] = ("png", "jpeg", "webp")
RECORD: dict[str, Any] = {
    "prompt": 'he said "no", <b>&amp; 猫 🙂\nleft',
    "negative_prompt": "blurry",
    "seed": 7,
    "num_inference_steps": 20,
    "guidance_scale": 7.5,
    "scheduler": "euler_a",
    "height": 24,
    "width": 33,
    "model_id": "user/<model>",
    "weights_hash": "0123456789abcdef",
    "ldm_version": "0.1.0",
}
IMAGE = photo(33, 24)


def encoded(file_format: ImageFormat, **changes: Any) -> bytes:
    return encode_with_record(IMAGE, RECORD | changes, file_format)


def written(folder: Path, file_format: ImageFormat, data: bytes | None = None) -> Path:
    path = folder / f"a{SUFFIXES[file_format]}"
    path.write_bytes(encoded(file_format) if data is None else data)
    return path


@pytest.mark.parametrize("file_format", FORMATS)
def test_settings_and_marks_are_in_every_format(tmp_path: Path, file_format: ImageFormat) -> None:
    path = written(tmp_path, file_format)
    assert read_settings(path) == RECORD and has_record(path) and image_format(path) == file_format
    metadata = read_metadata(path)
    assert source_type_in(metadata) == MADE
    assert metadata.properties["Iptc4xmpExt:DigitalSourceType"] == SOURCE_TYPES + MADE
    assert metadata.properties["Iptc4xmpExt:AISystemUsed"] == "user/<model>"
    assert metadata.properties["dc:description"] == WORDS[MADE]
    assert WORDS[MADE].encode() in path.read_bytes()
    check_encoded(path)
    with Image.open(path) as found:
        assert found.size == IMAGE.size


def test_pillow_reads_the_marks(tmp_path: Path) -> None:
    """A reader that is not ours finds the packet and the comment."""
    for file_format in FORMATS:
        with Image.open(written(tmp_path, file_format)) as found:
            found.load()
            xmp = found.info.get("xmp") or found.info["XML:com.adobe.xmp"].encode()
            assert (SOURCE_TYPES + MADE).encode() in xmp
    with Image.open(tmp_path / "a.jpg") as jpeg, Image.open(tmp_path / "a.png") as png:
        assert jpeg.info["comment"].decode() == png.info[COMMENT_KEY] == WORDS[MADE]


@pytest.mark.parametrize("file_format", FORMATS)
def test_other_programs_find_the_settings(tmp_path: Path, file_format: ImageFormat) -> None:
    prompt = "a red apple, 猫"
    found = ParserManager().parse(written(tmp_path, file_format, encoded(file_format, prompt=prompt)))
    assert found is not None
    assert [each.value for each in found.prompts] == [prompt] and found.samplers[0].parameters["seed"] == "7"


def test_pixels_are_kept_as_far_as_the_format_can() -> None:
    for file_format, most in (("png", 0), ("webp", 0), ("jpeg", 40)):
        data = encode_with_record(IMAGE, RECORD, file_format)  # type: ignore[arg-type]
        off = np.abs(pixels(Image.open(io.BytesIO(data))) - pixels(IMAGE))
        assert off.max() <= most and off.mean() <= most / 10
        assert data == encode_with_record(IMAGE, RECORD, file_format)  # type: ignore[arg-type]
    assert len(encode_with_record(IMAGE, RECORD, "webp", 30)) < len(
        encode_with_record(IMAGE, RECORD, "webp", 90)
    )


def test_an_image_from_another_one_is_a_composite() -> None:
    inputs = {"image": {"sha256": "ab" * 32, "width": 33, "height": 24}}
    for file_format in FORMATS:
        assert source_type_in(read_metadata(encoded(file_format, task="inpaint", inputs=inputs))) == EDITED
        assert source_type_in(read_metadata(encoded(file_format, controls=[{"kind": "canny"}]))) == MADE


def test_a_grid_is_marked() -> None:
    assert WORDS[MADE] in mark_texts().values() and MADE in mark_texts()["XML:com.adobe.xmp"]


def test_a_record_longer_than_a_segment_of_a_jpeg(tmp_path: Path) -> None:
    prompt = "ä" * 100_000
    for file_format in FORMATS:
        if file_format == "jpeg":
            with pytest.warns(LdmWarning, match="too long for a JPEG's EXIF"):
                data = encoded(file_format, prompt=prompt)
        else:
            data = encoded(file_format, prompt=prompt)
        path = written(tmp_path, file_format, data)
        assert read_settings(path)["prompt"] == prompt
        assert source_type_in(read_metadata(path)) == MADE
        check_encoded(path)
        with Image.open(path) as found:
            found.load()


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_changed_pixel_is_noticed_and_a_changed_comment_is_not(
    tmp_path: Path, file_format: ImageFormat
) -> None:
    data = encoded(file_format)
    mark = {"png": b"IDAT", "jpeg": b"\xff\xda", "webp": b"VP8L"}[file_format]
    place = data.index(mark) + 30
    path = written(tmp_path, file_format, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(Exception, match=r"checksum|broken|not those that were written"):
        check_encoded(path)
    if file_format != "png":
        changed = data.replace(WORDS[MADE].encode(), WORDS[MADE].upper().encode())
        assert changed != data and pixel_data_hash(changed) == pixel_data_hash(data)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_cut_off_or_damaged_anywhere_is_read_as_far_as_it_goes(file_format: ImageFormat) -> None:
    data = encoded(file_format)
    generator = np.random.default_rng(0)
    for end in range(0, len(data), 7):
        read_metadata(data[:end]).properties.get("x")
        pixel_data_hash(data[:end]) if file_format != "png" else None
    for _ in range(300):
        damaged = bytearray(data)
        for place in generator.integers(0, len(data), 5):
            damaged[place] = generator.integers(0, 256)
        read_metadata(bytes(damaged)).properties.get("x")
        pixel_data_hash(bytes(damaged))


def test_lengths_that_lie_take_no_memory() -> None:
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 2**31, b"tEXt") + b"a\0b"
    jpeg = b"\xff\xd8\xff\xe1\xff\xffhttp://ns.adobe.com/xap/1.0/\0<x"
    webp = b"RIFF" + struct.pack("<I", 2**31) + b"WEBPXMP " + struct.pack("<I", 2**32 - 1) + b"<x"
    for data in (png, jpeg, webp):
        assert read_metadata(data).properties == {}


ENTITIES = (
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description>&b;</rdf:Description></rdf:RDF>'
)


def test_packed_texts_take_no_more_memory_than_one_part_may() -> None:
    packed = b"\0\0" + zlib.compress(b"a" * 2**24)
    chunks = [b"%d" % number + packed for number in range(40)]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I4s", len(chunk), b"zTXt") + chunk + b"\0" * 4 for chunk in chunks
    )
    assert sum(map(len, read_metadata(png).texts.values())) <= 2 * 2**24


def test_lists_in_lists_and_other_encodings_end() -> None:
    rdf = (
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/"'
    )
    depth, opened, closed = 20_000, "<rdf:Bag><rdf:li>", "</rdf:li></rdf:Bag>"
    inner = f"<dc:rights>{opened * depth}mine{closed * depth}</dc:rights>"
    packet = f"<rdf:RDF {rdf}><rdf:Description>{inner}</rdf:Description></rdf:RDF>"
    assert xmp_properties(packet.encode()) == {"dc:rights": "mine"}
    assert xmp_properties(ENTITIES.encode("utf-16")) == {}


@pytest.mark.parametrize("packet", [ENTITIES, "<a>", "<" * 10_000, "<a/>" * 2, "\0\0", ""])
def test_a_hostile_packet_says_nothing(packet: str) -> None:
    from ldm.io.png import with_chunks

    assert read_metadata(with_chunks(IMAGE, {"XML:com.adobe.xmp": packet})).properties == {}


def test_a_jpeg_or_webp_without_a_record_is_refused(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.webp"):
        IMAGE.save(tmp_path / name)
        assert not has_record(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: has no `ldm` settings"):
            read_settings(tmp_path / name)


def test_the_exif_comment_is_a1111s() -> None:
    """Big-endian UTF-16 without a mark, in whatever order EXIF itself is."""
    for file_format in ("jpeg", "webp"):
        exif = read_metadata(encode_with_record(IMAGE, RECORD, file_format)).exif  # type: ignore[arg-type]
        assert b"UNICODE\0" + infotext(RECORD).encode("utf-16-be") in exif
