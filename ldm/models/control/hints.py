"""The kinds of control images ("hints"), and how each is resampled.

Nothing heavy is imported here: the command line reads this module for `ldm --help`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ldm.errors import UserError, unknown_name

Resampling = Literal["box", "smooth", "nearest"]
"""box averages areas, as in training; smooth does too, and interpolates between pixels where a map is enlarged; nearest
keeps each colour as it is, for maps whose colours are classes."""


@dataclass(frozen=True)
class HintKind:
    """A kind of control image.

    Attributes:
        contents: what it shows, for the help.
    """

    contents: str
    resampling: Resampling = "box"


REFERENCE = "reference"
"""What an image prompt (IP-Adapter) is called among control images; it is no map, and sets no size."""

CANNY = "canny"
"""The one kind that is computed here, from any image."""

HINT_KINDS: Mapping[str, HintKind] = {
    CANNY: HintKind("edges, found in the image given"),
    "depth": HintKind("near is white", "smooth"),
    "lineart": HintKind("a line drawing, white on black"),
    "mlsd": HintKind("straight lines"),
    "normal": HintKind("surface normals", "smooth"),
    "pose": HintKind("a skeleton"),
    "scribble": HintKind("rough lines, white on black"),
    "segmentation": HintKind("a colour for each class", "nearest"),
    "softedge": HintKind("soft edges, as HED finds them"),
    "tile": HintKind("an image to keep the layout of", "smooth"),
}


def check_kind(kind: str) -> None:
    """Refuse an unknown kind of hint.

    Raises:
        UserError: with the nearest known one.
    """
    if kind not in HINT_KINDS:
        raise unknown_name("kind of control image", kind, HINT_KINDS)


def split_kind(text: str, example: str) -> tuple[str, str]:
    """`KIND=REST`, as given to a command.

    Raises:
        UserError: there is no `=`, nothing after it, or the kind is unknown.
    """
    kind, equals, rest = text.partition("=")
    if not equals or not rest:
        raise UserError(f"{text!r} does not say of which kind it is", f"write {example}")
    check_kind(kind)
    return kind, rest
