"""`ldm provenance`: a line for each file, the same as JSON, and exit codes that a script can use."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.pipeline.record import encode_with_record
from ldm.provenance.credentials import Ingredient
from ldm.provenance.signing_identity import ROOT, SigningFiles
from tests.support.signatures import RECORD, identity, signed_image, told, with_a_changed_pixel
from tests.support.tiny_images import photo

pytest.importorskip("c2pa")


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> SigningFiles:
    return identity(tmp_path_factory.mktemp("alice"), "Alice")


def test_a_line_for_each_file(tmp_path: Path, alice: SigningFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    signed = signed_image(alice)
    inputs = {"image": {"sha256": "ab" * 32, "width": 33, "height": 24}}
    Path("signed.png").write_bytes(signed)
    Path("edited.webp").write_bytes(
        signed_image(alice, "webp", [Ingredient("signed.png", signed, "parentOf")], inputs=inputs)
    )
    Path("plain.jpg").write_bytes(encode_with_record(photo(), RECORD | {"inputs": inputs}, "jpeg"))
    photo().save("photo.bmp")
    Path("bare.png").write_bytes(encode_with_record(photo(), {"model_id": "tiny"}))
    root = alice.key.parent / ROOT
    code, output = told("--trust", root, "signed.png", "edited.webp", "plain.jpg", "photo.bmp", "bare.png")
    assert code == 0 and output.splitlines() == [
        "signed.png: signed by Alice; made by emoji (weights 0123456789, seed 7)",
        "edited.webp: signed by Alice; made by emoji (weights 0123456789, seed 7); from signed.png (signed by Alice)",
        "plain.jpg: not signed; says it was made by emoji (weights 0123456789, seed 7); from image (hash ababababab)",
        "photo.bmp: not signed; nothing says how it was made",
        "bare.png: not signed; says it was made by tiny",
    ]
    assert "signed by Alice, whose certificate is not trusted here; made" in told("signed.png")[1]


def test_tampering_is_exit_code_1(tmp_path: Path, alice: SigningFiles) -> None:
    (tmp_path / "a.png").write_bytes(with_a_changed_pixel(signed_image(alice), "png"))
    code, output = told(tmp_path / "a.png")
    assert code == 1
    said = "changed since Alice signed it (assertion.dataHash.mismatch); says it was made by emoji"
    assert f": TAMPERED: {said}" in output


def test_json_has_every_file(tmp_path: Path, alice: SigningFiles) -> None:
    (tmp_path / "a.png").write_bytes(signed_image(alice))
    (tmp_path / "b.png").write_bytes(b"")
    done = CliRunner().invoke(
        app, ["provenance", "show", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--json"]
    )
    first, second = json.loads(done.stdout)["files"]
    assert done.exit_code == 2
    assert (first["signature"], first["model"], first["credentials"]["signer"]) == ("valid", "emoji", "Alice")
    assert "the file is empty" in second["error"]


def test_hostile_files_have_one_line_each(tmp_path: Path, alice: SigningFiles) -> None:
    data = signed_image(alice, "jpeg")
    begin = data.index(b"c2pa")
    files = {
        "absent.png": None,
        "folder.png": None,
        "empty.png": b"",
        "text.png": b"hello",
        "cut.jpg": data[: begin + 100],
        "scrambled.jpg": data[:begin]
        + bytes(255 - b for b in data[begin : begin + 900])
        + data[begin + 900 :],
        "short.webp": b"RIFF\x04\0\0\0WEBP",
        "elsewhere\n.png": b"x",
    }
    (tmp_path / "folder.png").mkdir()
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    code, output = told(*(tmp_path / name for name in files))
    assert code == 2 and len(output.splitlines()) == len(files) and "Traceback" not in output


def test_an_identity_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_IDENTITY_DIR", str(tmp_path / "identity"))
    code, output = told("init", "--name", "Alice")
    assert code == 0 and len(output.splitlines()) == 3
    code, output = told("init", "--name", "Alice")
    assert code == 2 and "exists already" in output and len(output.splitlines()) == 1
