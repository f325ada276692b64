"""Where an image comes from, as far as its file says and proves: the facts and the line of `ldm provenance`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ldm.errors import UserError
from ldm.io.image_metadata import ImageMetadata, read_metadata
from ldm.io.image_writing import record_text
from ldm.io.images import open_image
from ldm.io.json_files import parse_json
from ldm.io.opening import MAX_IMAGE_BYTES, read_bytes
from ldm.provenance.credentials import Credentials, is_installed, read_credentials
from ldm.provenance.marks import is_flagged, source_type_in
from ldm.provenance.signing_identity import EXTRA
from ldm.provenance.watermark import MIN_DETECTED_PX, Detection, detect, payload_of

if TYPE_CHECKING:
    from ldm.provenance.lineage import LineageStep

Signature = Literal["none", "valid", "trusted", "tampered", "unreadable", "not checked"]


@dataclass(frozen=True)
class Provenance:
    """What is known of one file.

    Attributes:
        signature: "valid" if the file is what was signed, "trusted" if the signer's certificate is trusted, too.
        note: why the signature is unreadable or was not checked.
        record: that of our own images, signed or not.
        watermark: what the detector found; None if it was not asked.
        source_type: IPTC's word for how it was made, as the credentials or else the marks say.
        lineage: the steps back from its model; empty if no folders were searched for them.
    """

    path: Path
    signature: Signature
    note: str
    credentials: Credentials | None
    record: Mapping[str, Any] | None
    source_type: str
    watermark: Detection | None = None
    lineage: "tuple[LineageStep, ...]" = ()

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "path": str(self.path),
            "signature": self.signature,
            "note": self.note,
            "source_type": self.source_type,
            "model": self.made_by.get("model_id"),
            "weights_hash": self.made_by.get("weights_hash"),
            "record": dict(self.record) if self.record is not None else None,
            "credentials": asdict(self.credentials) if self.credentials else None,
            "watermark": self.watermark.to_json() if self.watermark else None,
            "lineage": [{**asdict(step), "place": step.place and str(step.place)} for step in self.lineage],
        }

    @property
    def made_by(self) -> Mapping[str, Any]:
        """What says how it was made: the signed record, or else the one that anyone can write."""
        signed = self.credentials.generation if self.credentials else None
        return signed or self.record or {}

    def line(self) -> str:
        """The same in one line."""
        return f"{self.path}: " + "; ".join(self._words())

    def _words(self) -> Iterator[str]:
        yield self._signed()
        yield self._made()
        if self.watermark and self.watermark.found:
            yield self._watermarked(self.watermark)
        if self.record and is_flagged(self.record):
            yield f"flagged as unsafe to show (score {self.record['safety'].get('score')})"
        if images := list(self._images()):
            yield f"from {', '.join(images)}"
        if self.lineage:
            yield " <- ".join(map(str, self.lineage))

    def _signed(self) -> str:
        signer = (self.credentials.signer if self.credentials else None) or "someone without a name"
        words: dict[Signature, str] = {
            "none": "not signed",
            "trusted": f"signed by {signer}",
            "valid": f"signed by {signer}, whose certificate is not trusted here",
            "tampered": f"TAMPERED: changed since {signer} signed it ({self.note})",
            "unreadable": f"its signature cannot be read ({self.note})",
            "not checked": f"signed, but not checked: {self.note}",
        }
        return words[self.signature]

    def _made(self) -> str:
        made = self.made_by
        if model := made.get("model_id"):
            known = {"weights": str(made.get("weights_hash") or "")[:10], "seed": made.get("seed")}
            facts = ", ".join(f"{name} {value}" for name, value in known.items() if value not in (None, ""))
            said = "made by" if self._is_proven else "says it was made by"
            return f"{said} {model}{facts and f' ({facts})'}"
        if self.source_type:
            return f"says it is {self.source_type}"
        return "nothing says how it was made"

    @property
    def _is_proven(self) -> bool:
        """Whether a signature that holds says how it was made."""
        is_signed = self.signature in ("valid", "trusted")
        return is_signed and self.credentials is not None and self.credentials.generation is not None

    def _watermarked(self, found: Detection) -> str:
        """What the watermark says, and whether the record says the same."""
        if found.payload is None:
            return "watermarked, but its ids cannot be read"
        told = f"watermarked (model {found.payload.model:04x}, image {found.payload.image:04x})"
        if not self.record:
            return told
        same = found.payload == payload_of(self.record)
        return f"{told}, as its record says" if same else f"{told}, which is NOT the image of its record"

    def _images(self) -> Iterator[str]:
        if self.credentials and self.credentials.ingredients:
            for each in self.credentials.ingredients:
                state = f"signed by {each.signer}" if each.signer else "not signed"
                yield f"{each.title} ({state}{'' if each.intact else ', TAMPERED'})"
            return
        inputs = self.made_by.get("inputs")
        for name, each in inputs.items() if isinstance(inputs, Mapping) else ():
            if isinstance(each, Mapping):
                yield f"{name} (hash {str(each.get('sha256'))[:10]})"


def provenance_of(
    path: Path, roots: Sequence[str] = (), folders: Sequence[Path] = (), *, search: bool = False
) -> Provenance:
    """What is known of a file.

    Args:
        roots: certificates in PEM that are trusted, see `ldm.provenance.credentials.read_credentials`.
        folders: where to look for the models, runs and exports that it may come from.
        search: look for watermarks of images that were cut or turned, too.

    Raises:
        UserError: it cannot be read, or is not an image.
    """
    try:
        data = read_bytes(path, MAX_IMAGE_BYTES)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "name an image") from None
    metadata = read_metadata(data)
    try:
        watermark = _watermark(data, str(path), search=search)
    except UserError:
        if not metadata.c2pa:
            raise
        watermark = None  # its signature will say that it has changed
    credentials, signature, note = _credentials(data, metadata, roots)
    record = _record(metadata)
    signed_type = credentials.source_type if credentials else ""
    found = Provenance(
        path, signature, note, credentials, record, signed_type or source_type_in(metadata), watermark
    )
    return replace(found, lineage=_lineage(found.made_by, folders)) if folders else found


def _lineage(made_by: Mapping[str, Any], folders: Sequence[Path]) -> "tuple[LineageStep, ...]":
    from ldm.provenance.lineage import lineage  # loads torch

    image_hash = made_by.get("weights_hash")
    return tuple(lineage(image_hash, folders)) if isinstance(image_hash, str) else ()


def _watermark(data: bytes, name: str, *, search: bool) -> Detection | None:
    """What the detector finds in an image, or None if it is too small to have one."""
    image = open_image(data, name=name)
    return detect(image, search=search) if min(image.size) >= MIN_DETECTED_PX else None


def _credentials(
    data: bytes, metadata: ImageMetadata, roots: Sequence[str]
) -> tuple[Credentials | None, Signature, str]:
    if metadata.format is not None and not metadata.c2pa:
        return None, "none", ""
    if not is_installed():
        return None, "not checked" if metadata.c2pa else "none", EXTRA
    try:
        found = read_credentials(data, roots)
    except UserError as error:
        return None, "unreadable" if metadata.c2pa else "none", error.hint
    if found is None:
        return None, "none", ""
    if found.tampered:
        return found, "tampered", ", ".join(found.faults)
    return found, "trusted" if found.trusted else "valid", ""


def _record(metadata: ImageMetadata) -> Mapping[str, Any] | None:
    """The record of our own images; a broken one is none."""
    try:
        found = parse_json(record_text(metadata) or "null")
    except ValueError:
        return None
    return found if isinstance(found, Mapping) else None
