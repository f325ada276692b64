"""What an image's file says about rights: its licence, and whether AI training is reserved.

Read are the metadata of PNG, JPEG and WebP files, not their pixels:

    plus:DataMining        PLUS and IPTC 2023.1: a DMI-PROHIBITED value
    tdm:reservation        TDMRep of W3C: 1
    training-mining        an assertion of C2PA or CAWG credentials: a use in training that is notAllowed or constrained
    dc:rights, xmpRights:UsageTerms, xmpRights:WebStatement, cc:license, EXIF and IPTC copyright
    Iptc4xmpExt:DigitalSourceType   an image made by AI
"""

import re
from dataclasses import dataclass, field

from PIL import Image
from PIL.ExifTags import Base

from ldm.io.image_metadata import ImageMetadata, read_metadata

LICENCE_FIELDS = ("xmpRights:UsageTerms", "xmpRights:WebStatement", "cc:license", "dc:rights")
COPYRIGHTS = ("dc:rights", "EXIF Copyright", "IPTC Copyright")
"""Fields that name the owner rather than a licence."""

MADE_BY_AI = re.compile(r"trainedAlgorithmicMedia$", re.IGNORECASE)
_USES = re.compile(
    rb"(?:c2pa|cawg)\.(ai_training|ai_generative_training|data_mining)[^\x00]{0,80}?(notAllowed|constrained|allowed)",
    re.DOTALL,
)
_IPTC_COPYRIGHT = re.compile(rb"\x1c\x02\x74(..)", re.DOTALL)
_LONGEST_VALUE = 200


@dataclass(frozen=True)
class ImageRights:
    """What one file says.

    Attributes:
        reserved: the mark that reserves AI training, such as "plus:DataMining DMI-PROHIBITED"; empty without one.
        made_by_ai: whether it says that a model made it.
        licences: the fields of rights that it has.
    """

    reserved: str = ""
    made_by_ai: bool = False
    licences: dict[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the data report says of the image."""
        reserved = (f"reserved: not for AI training ({self.reserved})",) if self.reserved else ()
        return reserved + (("made by AI, says its file",) if self.made_by_ai else ())


NO_RIGHTS = ImageRights()
"""What most files say: one object for all of them, because there may be millions."""


def read_rights(data: bytes) -> ImageRights:
    """What the bytes of an image file say; damaged metadata say nothing."""
    metadata = read_metadata(data)
    source_type = metadata.properties.get("Iptc4xmpExt:DigitalSourceType", "")
    found = ImageRights(reserved_by(metadata), bool(MADE_BY_AI.search(source_type)), _licences(metadata))
    return NO_RIGHTS if found == NO_RIGHTS else found


def reserved_by(metadata: ImageMetadata) -> str:
    """The first mark that reserves AI training, or an empty text."""
    mining = metadata.properties.get("plus:DataMining", "").rpartition("/")[2]
    if mining.startswith("DMI-PROHIBITED"):
        return f"plus:DataMining {mining}"
    if metadata.properties.get("tdm:reservation") == "1":
        return "tdm:reservation 1"
    uses = {use.decode(): answer.decode() for use, answer in _mining_uses(metadata.c2pa)}
    refused = next((use for use, answer in uses.items() if answer != "allowed"), None)
    return f"C2PA {refused} {uses[refused]}" if refused else ""


def _mining_uses(c2pa: bytes) -> list[tuple[bytes, bytes]]:
    """The uses that credentials name, with their answers: texts in CBOR as in JSON, which follow each other."""
    begin = c2pa.find(b".training-mining\x00")
    return _USES.findall(c2pa, begin) if begin >= 0 else []


def _licences(metadata: ImageMetadata) -> dict[str, str]:
    found = {name: metadata.properties.get(name, "") for name in LICENCE_FIELDS}
    found["EXIF Copyright"] = _exif_copyright(metadata.exif)
    if match := _IPTC_COPYRIGHT.search(metadata.iptc):
        length = int.from_bytes(match[1], "big")
        found["IPTC Copyright"] = metadata.iptc[match.end() :][:length].decode("utf-8", "replace")
    plain = {name: " ".join(text.split("\0")[0].split())[:_LONGEST_VALUE] for name, text in found.items()}
    return {name: text for name, text in plain.items() if text}


def _exif_copyright(exif: bytes) -> str:
    if not exif:
        return ""
    tags = Image.Exif()
    try:
        tags.load(b"Exif\0\0" + exif)
        value = tags.get(Base.Copyright.value, "")
    except Exception:  # a reader of foreign bytes raises nearly anything
        return ""
    return value if isinstance(value, str) else ""
