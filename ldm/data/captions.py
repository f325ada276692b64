"""What a caption is, which of them a sample is shown with, and whether mirroring keeps it true."""

import re
from collections.abc import Sequence

from ldm.data.sample import Sample
from ldm.noise import choice, uniform

_DIRECTION = re.compile(
    r"(left|right)(s|most|wards?|hand|handed)?"
    r"|(anti|counter)?clockwise"
    r"|(north|south)?(east|west)(ern|wards?)?"
)


def directional_words(caption: str) -> list[str]:
    """The words of a caption that a mirrored image makes false, in order, each once."""
    words = re.findall(r"[^\W\d_]+", caption.casefold())
    return list(dict.fromkeys(word for word in words if _DIRECTION.fullmatch(word)))


def flip_allowed(sample: Sample) -> bool:
    """Whether a sample may be mirrored: as its folder says, or else when no caption names a direction."""
    if sample.may_flip is not None:
        return sample.may_flip
    return not any(directional_words(caption) for caption in sample.captions)


def caption_for(captions: Sequence[str], *, seed: int, epoch: int, sample_id: str, dropout: float) -> str:
    """The caption a sample is shown with in an epoch: one of `captions`, or "" with probability `dropout`.

    A pure function of (seed, epoch, sample_id): the same on any rank and after any restart.
    """
    if uniform(seed, epoch, sample_id, "caption dropout") < dropout:
        return ""
    return captions[choice(len(captions), seed, epoch, sample_id, "caption")]
