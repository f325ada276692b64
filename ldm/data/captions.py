"""What a caption is, which of them a sample is shown with, and whether mirroring keeps it true."""

import math
import re
from itertools import permutations
from typing import Self

from pydantic import Field, model_validator

from ldm.config import Settings
from ldm.data.sample import Sample
from ldm.noise import choice, permutation, uniform

_DIRECTION = re.compile(
    r"(left|right)(s|most|wards?|hand|handed)?"
    r"|(anti|counter)?clockwise"
    r"|(north|south)?(east|west)(ern|wards?)?"
)
_KEEP_FIRST, _SEPARATOR = 1, ","

MOST_ORDERS = 24
"""A caption whose tags can come in more orders than this has too many to list (four tags that move have 24)."""


class CaptionSettings(Settings):
    """What becomes of a sample's captions at each of its turns; never part of a cache."""

    dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of turns on which the caption is empty, which trains the unconditional model",
    )
    shuffle_tags: bool = Field(False, description="put the parts of a caption in another order each epoch")
    keep_first: int = Field(
        _KEEP_FIRST, ge=0, description="with shuffle_tags: so many parts stay in front, in their order"
    )
    separator: str = Field(
        _SEPARATOR, min_length=1, description="with shuffle_tags: what stands between parts"
    )
    prefix: str = Field("", description="put before every caption but the empty one of dropout")
    suffix: str = Field("", description="put behind every caption but the empty one of dropout")

    @model_validator(mode="after")
    def _check_shuffling(self) -> Self:
        if not self.shuffle_tags:
            for name, default in (("keep_first", _KEEP_FIRST), ("separator", _SEPARATOR)):
                if (value := getattr(self, name)) != default:
                    raise ValueError(
                        f"{name} = {value!r} has no effect: set shuffle_tags=true or leave it out"
                    )
        return self


def directional_words(caption: str) -> list[str]:
    """The words of a caption that a mirrored image makes false, in order, each once."""
    words = re.findall(r"[^\W\d_]+", caption.casefold())
    return list(dict.fromkeys(word for word in words if _DIRECTION.fullmatch(word)))


def flip_allowed(sample: Sample) -> bool:
    """Whether a sample may be mirrored: as its folder says, or else when no caption or text names a direction."""
    if sample.may_flip is not None:
        return sample.may_flip
    return not any(directional_words(text) for text in (*sample.captions, *sample.texts.values()))


def caption_for(sample: Sample, settings: CaptionSettings, *, seed: int, epoch: int) -> str:
    """The caption a sample is shown with in an epoch: one of its own, its tags shuffled if they are to be, or "".

    A pure function of (seed, epoch, sample id): the same on any rank and after any restart. Each kind of draw has its
    own key, so dropping captions changes neither which caption comes nor the order of its tags.
    """
    key = (seed, epoch, sample.sample_id)
    if uniform(*key, "caption dropout") < settings.dropout:
        return ""
    caption = sample.captions[choice(len(sample.captions), *key, "caption")]
    if settings.shuffle_tags:
        kept, moving = split_tags(caption, settings)
        order = permutation(len(moving), *key, "caption tags")
        caption = _join_tags([*kept, *(moving[i] for i in order)], settings.separator)
    return _dress(caption, settings)


def plain_caption(sample: Sample, settings: CaptionSettings) -> str:
    """A sample's first caption as training shows it, never dropped and with its tags in their own order."""
    caption = sample.text
    if settings.shuffle_tags:
        kept, moving = split_tags(caption, settings)
        caption = _join_tags([*kept, *moving], settings.separator)
    return _dress(caption, settings)


def possible_captions(sample: Sample, settings: CaptionSettings) -> list[str] | None:
    """Every caption that `caption_for` can give, each once; None when shuffling makes more than can be stored."""
    found = [] if settings.dropout == 1 else list(sample.captions)
    if settings.shuffle_tags:
        parts = [split_tags(caption, settings) for caption in found]
        if sum(math.factorial(len(moving)) for _, moving in parts) > MOST_ORDERS:
            return None
        orders = [[*kept, *moved] for kept, moving in parts for moved in permutations(moving)]
        found = [_join_tags(tags, settings.separator) for tags in orders]
    dressed = [_dress(caption, settings) for caption in found]
    return list(dict.fromkeys(dressed + ([""] if settings.dropout > 0 else [])))


def split_tags(caption: str, settings: CaptionSettings) -> tuple[list[str], list[str]]:
    """The parts of a caption without the spaces around them: those that stay in front, and those that move."""
    tags = [tag for part in caption.split(settings.separator) if (tag := part.strip())]
    return tags[: settings.keep_first], tags[settings.keep_first :]


def _join_tags(tags: list[str], separator: str) -> str:
    """Tags as one caption, with a space behind a separator that has none of its own."""
    return (separator if separator[-1].isspace() else f"{separator} ").join(tags)


def _dress(caption: str, settings: CaptionSettings) -> str:
    """Prefix and suffix around a caption, apart by a space; a suffix such as ", by night" follows directly."""
    if not settings.prefix and not settings.suffix:
        return caption
    front = " ".join(part for part in (settings.prefix.strip(), caption.strip()) if part)
    back = settings.suffix.strip()
    apart = " " if front and back and back[0] not in ",.;:!?" else ""
    return front + apart + back
