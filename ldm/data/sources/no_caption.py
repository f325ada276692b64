"""What to do with an image that has no caption: refuse it, or make one by a rule.

error     the image is refused
empty     the caption is empty: such images train the unconditional model
filename  `red-apple_03.png` is "red apple 03"
folder    `brown_dog/03.png` is "brown dog"; for an image at the top, the name of the data's folder
"""

from pathlib import Path, PurePosixPath
from typing import Literal

from ldm.data.sources.scan import composed

MissingCaption = Literal["error", "empty", "filename", "folder"]

RULE_NOTES = {
    "empty": "no caption: an empty one is used",
    "filename": "no caption: made from the file's name",
    "folder": "no caption: made from the folder's name",
}
"""What the data report says of an image whose caption was made by a rule."""


def caption_by_rule(rule: MissingCaption, name: str, root: Path | None = None) -> str | None:
    """The caption of an image without one, or None if the rule refuses it or finds no word.

    Args:
        name: of the image, relative to the data's folder; "" if it has none, as in parquet files.
        root: the data's folder.
    """
    path = PurePosixPath(name)
    if rule == "empty":
        return ""
    if rule == "filename":
        return _words(path.stem) or None
    if rule == "folder":
        return _words(path.parent.name or (root.resolve().name if root and name else "")) or None
    return None


def _words(name: str) -> str:
    return " ".join(composed(name).replace("_", " ").replace("-", " ").split())
