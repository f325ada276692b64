"""C2PA credentials: signed, verified by C2PA's own reader, and broken by a single pixel."""

import io
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.errors import LdmWarning, UserError
from ldm.io.image_metadata import ImageFormat, read_metadata
from ldm.provenance.credentials import GENERATION, ImageSigner, Ingredient, read_credentials
from ldm.provenance.marks import EDITED, MADE
from ldm.provenance.signing_identity import CERTIFICATES, KEY, ROOT, SigningFiles, make_identity
from tests.support.signatures import RECORD, identity, signed_image, with_a_changed_pixel

c2pa = pytest.importorskip("c2pa")
FORMATS: tuple[ImageFormat, ...] = ("png", "jpeg", "webp")


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> SigningFiles:
    return identity(tmp_path_factory.mktemp("alice"), "Alice")


@pytest.fixture(scope="module")
def bob(tmp_path_factory: pytest.TempPathFactory) -> SigningFiles:
    return identity(tmp_path_factory.mktemp("bob"), "Bob & Söhne")


def root_of(files: SigningFiles) -> str:
    return (files.key.parent / ROOT).read_text()


def their_report(data: bytes, root: str) -> dict[str, Any]:
    """What C2PA's library says, without any code of ours."""
    settings = {"verify": {"remote_manifest_fetch": False}, "trust": {"user_anchors": root}}
    with (
        c2pa.Context.from_dict(settings) as context,
        c2pa.Reader(io.BytesIO(data), context=context) as reader,
    ):
        report: dict[str, Any] = json.loads(reader.json())
    return report


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_signed_file_verifies_until_one_pixel_changes(
    alice: SigningFiles, file_format: ImageFormat
) -> None:
    data = signed_image(alice, file_format)
    theirs = their_report(data, root_of(alice))
    assert theirs["validation_state"] == "Trusted"
    found = read_credentials(data, [root_of(alice)])
    assert found is not None and found.trusted and not found.tampered
    assert (found.signer, found.source_type, found.generator) == ("Alice", MADE, "OpenLDM 0.1.0")
    assert found.generation is not None and found.generation["weights_hash"] == RECORD["weights_hash"]
    changed = with_a_changed_pixel(data, file_format)
    assert Image.open(io.BytesIO(changed)).size == (33, 24)
    assert their_report(changed, root_of(alice))["validation_state"] == "Invalid"
    broken = read_credentials(changed, [root_of(alice)])
    assert broken is not None and broken.tampered and broken.faults == ("assertion.dataHash.mismatch",)


def test_a_changed_record_is_tampering_too(alice: SigningFiles) -> None:
    data = signed_image(alice).replace(b'"seed": 7', b'"seed": 8')
    found = read_credentials(data, [root_of(alice)])
    assert found is not None and found.tampered


def test_a_stranger_signs_validly_but_is_not_trusted(alice: SigningFiles, bob: SigningFiles) -> None:
    found = read_credentials(signed_image(bob), [root_of(alice)])
    assert found is not None and not found.trusted and not found.tampered and found.signer == "Bob & Söhne"


def test_the_own_identity_is_trusted(alice: SigningFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_IDENTITY_DIR", str(alice.key.parent))
    found = read_credentials(signed_image(alice))
    assert found is not None and found.trusted


def test_a_file_without_credentials_has_none() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    assert read_credentials(buffer.getvalue()) is None


@pytest.mark.parametrize("file_format", FORMATS)
def test_an_edit_keeps_the_credentials_of_its_image(
    alice: SigningFiles, bob: SigningFiles, file_format: ImageFormat
) -> None:
    original = signed_image(alice, file_format)
    inputs = {"image": {"sha256": "ab" * 32, "width": 33, "height": 24}}
    unsigned = Ingredient("mask.png", _png(), "inputTo")
    given = [Ingredient("apple.png", original, "parentOf"), unsigned]
    data = signed_image(bob, "png", given, task="inpaint", inputs=inputs)
    assert their_report(data, root_of(bob) + root_of(alice))["validation_state"] == "Trusted"
    found = read_credentials(data, [root_of(bob)])
    assert (
        found is not None
        and not found.tampered
        and (found.signer, found.source_type) == ("Bob & Söhne", EDITED)
    )
    facts = [(each.title, each.relationship, each.signer, each.intact) for each in found.ingredients]
    assert facts == [("apple.png", "parentOf", "Alice", True), ("mask.png", "inputTo", None, True)]
    manifests = their_report(data, root_of(bob))["manifests"].values()
    assert {each["signature_info"]["issuer"] for each in manifests} == {"Alice", "Bob & Söhne"}
    seeds = [a["data"]["seed"] for each in manifests for a in each["assertions"] if a["label"] == GENERATION]
    assert seeds == [7, 7]


def test_an_image_that_was_tampered_with_before_the_edit_stays_so(
    alice: SigningFiles, bob: SigningFiles
) -> None:
    damaged = with_a_changed_pixel(signed_image(alice), "png")
    inputs = {"image": {"sha256": "ab" * 32, "width": 33, "height": 24}}
    data = signed_image(bob, "png", [Ingredient("a.png", damaged, "parentOf")], inputs=inputs)
    found = read_credentials(data, [root_of(bob)])
    assert found is not None and not found.tampered
    assert [(each.signer, each.intact) for each in found.ingredients] == [("Alice", False)]


def test_prompts_are_signed_only_if_asked_for(alice: SigningFiles) -> None:
    for with_prompts in (False, True):
        told = read_metadata(signed_image(alice, with_prompts=with_prompts)).c2pa
        assert (b"a secret word" in told) is (b"a red apple" in told) is with_prompts
        assert b"prompt_weights" in told


def test_the_key_is_for_its_owner_only(tmp_path: Path, alice: SigningFiles) -> None:
    make_identity("Carol", tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new" / KEY).stat().st_mode) == 0o600
    before = (tmp_path / "new" / KEY).read_bytes()
    with pytest.raises(UserError, match="exists already: keep it"):
        make_identity("Carol", tmp_path / "new")
    assert (tmp_path / "new" / KEY).read_bytes() == before
    os.chmod(tmp_path / "new" / KEY, 0o644)
    with pytest.warns(LdmWarning, match="others on this computer may read this key"):
        ImageSigner(SigningFiles(tmp_path / "new" / KEY, tmp_path / "new" / CERTIFICATES))


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 65])
def test_a_name_that_no_certificate_can_hold(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot stand in a certificate"):
        make_identity(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


ENCRYPTED = "encrypted"


@pytest.mark.parametrize(
    ("key", "certificate", "words"),
    [
        (None, "other", "cannot sign"),
        (None, "key", "cannot sign"),
        (b"", "own", "is not the private key in PEM"),
        (b"\xff\xfe", "own", "is not the private key in PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "own", "is not a private key"),
        (None, "absent", "No such file"),
        (ENCRYPTED.encode(), "own", "is encrypted"),
    ],
)
def test_keys_and_certificates_that_cannot_sign(
    tmp_path: Path, alice: SigningFiles, bob: SigningFiles, key: bytes | None, certificate: str, words: str
) -> None:
    certificates = {
        "own": alice.certificates,
        "other": bob.certificates,
        "key": alice.key,
        "absent": tmp_path / "absent.pem",
    }
    path = alice.key if key is None else tmp_path / "key.pem"
    if key is not None:
        path.write_bytes(_encrypted(alice.key) if key == ENCRYPTED.encode() else key)
        path.chmod(0o600)
    with pytest.raises(UserError, match=words) as caught:
        ImageSigner(SigningFiles(path, certificates[certificate]))
    assert "\n" not in str(caught.value)


def _encrypted(path: Path) -> bytes:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    key = load_pem_private_key(path.read_bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))


def test_without_the_packages_the_error_names_them(
    tmp_path: Path, alice: SigningFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("c2pa", "cryptography"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(UserError, match="pip install c2pa-python cryptography"):
                ImageSigner(alice) if name == "c2pa" else make_identity("A", tmp_path)
