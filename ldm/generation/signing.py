"""The file of a generated image, signed if asked for, with the images given as ingredients of its credentials."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.errors import UserError
from ldm.io.image_metadata import ImageFormat, read_metadata
from ldm.io.images import open_image
from ldm.io.opening import MAX_IMAGE_BYTES, read_bytes
from ldm.io.png import with_chunks
from ldm.io.redaction import public_file_name
from ldm.pipeline.batches import ImageRequest
from ldm.pipeline.input_images import InputImage
from ldm.pipeline.record import encode_with_record
from ldm.pipeline.settings import MadeImage
from ldm.provenance.credentials import ImageSigner, Ingredient, Relationship
from ldm.provenance.marks import EDITED, MADE, mark_texts
from ldm.provenance.signing_identity import SigningFiles, local_identity

SHEET_KEYS = ("model_id", "weights_hash", "ldm_version", "inputs")
"""What the images of a sheet have in common in their records."""


@dataclass(frozen=True)
class Signing:
    """How the images of a call are signed.

    Attributes:
        with_prompts: see `ImageSigner`.
    """

    files: SigningFiles
    with_prompts: bool = False

    def signer(self) -> ImageSigner:
        """Raises UserError if the files cannot sign."""
        return ImageSigner(self.files, with_prompts=self.with_prompts)


def read_signing(
    *, sign: bool, sign_key: Path | None, sign_certificate: Path | None, sign_prompts: bool
) -> Signing | None:
    """How images are signed, from the options of `ldm generate`; None if they are not.

    Raises:
        UserError: a key without a certificate or the reverse, or there is no identity.
    """
    if (sign_key is None) != (sign_certificate is None):
        given, missing = ("key", "certificate") if sign_certificate is None else ("certificate", "key")
        raise UserError(f"--sign-{given} without --sign-{missing}", "give both")
    if sign_key and sign_certificate:
        return Signing(SigningFiles(sign_key, sign_certificate), sign_prompts)
    if sign_prompts and not sign:
        raise UserError("--sign-prompts without --sign", "add --sign")
    return Signing(local_identity(), sign_prompts) if sign else None


def image_file(
    made: MadeImage,
    signer: ImageSigner | None = None,
    file_format: ImageFormat = "png",
    quality: int | None = None,
) -> bytes:
    """The bytes of an image's file: its record, its marks and, if there is a signer, its credentials.

    Args:
        quality: as in `ldm.io.image_writing.encode_image`.

    Raises:
        UserError: the image cannot be signed, or one that it was made from cannot be read any more.
    """
    data = encode_with_record(made.image, made.record, file_format, quality)
    if signer is None:
        return data
    return signer.sign(data, file_format, made.record.to_json(), list(ingredients_of(made.request)))


def sheet_file(sheet: Image.Image, *, edited: bool, texts: Mapping[str, str] | None = None) -> bytes:
    """The PNG of several images side by side, with its marks and more text chunks, not signed.

    Args:
        edited: whether one of them was made from another image.
    """
    return with_chunks(sheet, {**(texts or {}), **mark_texts(EDITED if edited else MADE)})


def signed_sheet(
    data: bytes, images: Sequence[tuple[str, bytes]], record: Mapping[str, Any], signer: ImageSigner
) -> bytes:
    """What `sheet_file` made, with credentials that refer to those of its images.

    Args:
        images: the names and the bytes of their files.
        record: of one of them, flat; of an edited one, if there is any.

    Raises:
        UserError: it cannot be signed.
    """
    told = {key: record[key] for key in SHEET_KEYS if record.get(key)}
    return signer.sign(data, "png", told, [Ingredient(name, file, "inputTo") for name, file in images])


def ingredients_of(request: ImageRequest) -> Iterator[Ingredient]:
    """The images that an image is made from: the one that is edited, then masks, control and reference images."""
    for name, given in request.inputs.items():
        if given.kind in ("photo", "mask"):
            yield _ingredient(given, "parentOf" if name == "image" else "inputTo")
    for control in request.controls:
        yield _ingredient(control.image, "inputTo")


def _ingredient(given: InputImage, relationship: Relationship) -> Ingredient:
    title = public_file_name(Path(given.name).name)
    return Ingredient(title, _file_of(given), relationship)


def _file_of(given: InputImage) -> bytes:
    """The bytes of the file, with its credentials; of an image in memory or in another format, a PNG."""
    if given.file is None:
        assert given.decoded is not None  # one or the other
        return with_chunks(open_image(given.decoded), {})
    try:
        data = read_bytes(given.file, MAX_IMAGE_BYTES)
    except OSError as error:
        raise UserError(f"{given.name}: {error.strerror}", "restore it and start again") from None
    return data if read_metadata(data).format else with_chunks(open_image(data, name=given.name), {})
