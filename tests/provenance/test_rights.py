"""Marks in the files of a data set: "no AI training", licences, and images that an AI made."""

import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.data.prepare import DataSettings, prepare
from ldm.data.rights import ImageRights, read_rights, reserved_by
from ldm.data.sample import FileImage
from ldm.data.sources.reading import SourceSettings, read_sources
from ldm.data.survey import survey
from ldm.errors import UserError
from ldm.io.image_metadata import XMP_KEY, ImageMetadata
from ldm.io.png import with_chunks
from ldm.io.xmp import xmp_packet
from tests.support.signatures import identity
from tests.support.tiny_images import photo

PLUS = "http://ns.useplus.org/ldf/vocab/"


def with_xmp(properties: Mapping[str, str], seed: int = 0) -> bytes:
    return with_chunks(photo(64, 64, seed), {XMP_KEY: xmp_packet(properties)})


@pytest.mark.parametrize(
    ("properties", "reserved"),
    [
        ({"plus:DataMining": PLUS + "DMI-PROHIBITED"}, "plus:DataMining DMI-PROHIBITED"),
        (
            {"plus:DataMining": "DMI-PROHIBITED-GENAIMLTRAINING"},
            "plus:DataMining DMI-PROHIBITED-GENAIMLTRAINING",
        ),
        ({"plus:DataMining": PLUS + "DMI-ALLOWED"}, ""),
        ({"plus:DataMining": PLUS + "DMI-UNSPECIFIED"}, ""),
        ({"tdm:reservation": "1"}, "tdm:reservation 1"),
        ({"tdm:reservation": "0"}, ""),
        ({}, ""),
    ],
)
def test_a_mark_in_xmp(properties: dict[str, str], reserved: str) -> None:
    assert (
        reserved_by(ImageMetadata("png", xmp=xmp_packet(properties or {"dc:rights": "x"}).encode()))
        == reserved
    )


@pytest.mark.parametrize("uri", ["http://www.w3.org/ns/tdmrep", "http://www.w3.org/ns/tdmrep#"])
def test_a_mark_as_others_write_it(uri: str) -> None:
    """An attribute, in another spelling of the namespace, with another prefix."""
    packet = xmp_packet({"dc:rights": "x"}).replace(
        'rdf:about=""', f'rdf:about="" xmlns:q="{uri}" q:reservation="1"'
    )
    assert reserved_by(ImageMetadata("png", xmp=packet.encode())) == "tdm:reservation 1"


GENERATIVE, TRAINING, MINING = "ai_generative_training", "ai_training", "data_mining"


@pytest.mark.parametrize(
    ("kind", "entries", "reserved"),
    [
        ("cawg", {GENERATIVE: {"use": "notAllowed"}}, "C2PA ai_generative_training notAllowed"),
        (
            "c2pa",
            {TRAINING: {"use": "constrained", "constraint_info": "ask"}},
            "C2PA ai_training constrained",
        ),
        ("cawg", {MINING: {"use": "allowed"}, "ai_inference": {"use": "notAllowed"}}, ""),
    ],
)
def test_an_assertion_in_credentials(
    tmp_path: Path, kind: str, entries: dict[str, Any], reserved: str
) -> None:
    """Written by C2PA's library, in both ways in which it stores an assertion."""
    c2pa = pytest.importorskip("c2pa")
    files = identity(tmp_path, "Alice")
    named = {f"{kind}.{use}": answer for use, answer in entries.items()}
    for stored in ({}, {"kind": "Json"}):
        assertion = {"label": f"{kind}.training-mining", "data": {"entries": named}, **stored}
        created = {"action": "c2pa.created", "digitalSourceType": "http://c2pa.org/digitalsourcetype/empty"}
        manifest = {"assertions": [{"label": "c2pa.actions", "data": {"actions": [created]}}, assertion]}
        info = c2pa.C2paSignerInfo("es256", files.certificates.read_bytes(), files.key.read_bytes(), None)
        signed = io.BytesIO()
        with c2pa.Builder(manifest) as builder, c2pa.Signer.from_info(info) as signer:
            builder.sign(signer, "image/png", io.BytesIO(with_chunks(photo(), {})), signed)
        (tmp_path / "a.png").write_bytes(signed.getvalue())
        assert read_rights((tmp_path / "a.png").read_bytes()).reserved == reserved


def test_licences_and_images_made_by_ai(tmp_path: Path) -> None:
    source_type = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    told = {
        "Iptc4xmpExt:DigitalSourceType": source_type,
        "dc:rights": "© Anna",
        "xmpRights:UsageTerms": "CC BY 4.0",
    }
    (tmp_path / "a.png").write_bytes(with_xmp(told))
    rights = read_rights((tmp_path / "a.png").read_bytes())
    assert rights == ImageRights("", True, {"xmpRights:UsageTerms": "CC BY 4.0", "dc:rights": "© Anna"})
    exif = Image.Exif()
    exif[0x8298] = "Anna\0Editor"
    photo().save(tmp_path / "a.jpg", exif=exif)
    notice = b"\x1c\x02\x74" + struct.pack(">H", 6) + b"Bertha"
    segment = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(notice)) + notice
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(
        data[:2] + b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    )
    assert read_rights((tmp_path / "a.jpg").read_bytes()).licences == {
        "EXIF Copyright": "Anna",
        "IPTC Copyright": "Bertha",
    }


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    marks: list[dict[str, str]] = [{"dc:rights": "x"}, {"tdm:reservation": "1"}, {"cc:license": "CC0"}]
    for number, properties in enumerate(marks):
        (folder / f"{number}.png").write_bytes(with_xmp(properties, number))
        (folder / f"{number}.txt").write_text(f"photo {number}")
    return folder


def test_data_check_reports_them_and_reads_each_file_once(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = CliRunner().invoke(app, ["data", "check", str(photos)])
    assert done.exit_code == 0
    assert "note: reserved: not for AI training (tdm:reservation 1): 1 image (1.png)" in done.output
    monkeypatch.delattr(FileImage, "read")
    done = CliRunner().invoke(app, ["data", "check", str(photos), "--json"])
    assert json.loads(done.stdout)["licences"] == {
        "fields": {
            "dc:rights (copyright in the file)": {"x": 1},
            "cc:license (licence in the file)": {"CC0": 1},
        },
        "num_without": 2,
    }


def test_data_check_refuses_them_if_asked_to(photos: Path) -> None:
    done = CliRunner().invoke(app, ["data", "check", str(photos), "--refuse-reserved"])
    assert done.exit_code == 2
    assert "1.png: its file reserves AI training (tdm:reservation 1): ask for permission" in done.output


def test_a_run_leaves_them_out_or_refuses(photos: Path) -> None:
    reading = read_sources([SourceSettings(path=str(photos))])
    facts = survey(reading.samples, None)
    for reserved, used in (("report", ["0.png", "1.png", "2.png"]), ("leave_out", ["0.png", "2.png"])):
        settings = DataSettings(path=str(photos), reserved=reserved, max_bad_fraction=0.0)  # type: ignore[arg-type]
        prepared = prepare(reading, facts, settings, multiple=8, seed=0)
        assert [one.sample.sample_id for one in prepared.placed] == used and prepared.num_found == 3
    settings = DataSettings(path=str(photos), reserved="refuse")
    with pytest.raises(
        UserError, match=r"1 of 3 images reserve AI training .*1\.png.*data\.reserved=leave_out"
    ):
        prepare(reading, facts, settings, multiple=8, seed=0)
