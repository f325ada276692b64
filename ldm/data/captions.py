"""Which caption a sample gets in an epoch, and whether mirroring its image keeps the captions true."""

import math
import re
from itertools import permutations
from typing import Self

from pydantic import Field, model_validator

from ldm.config import Settings
from ldm.data.sample import Sample, SampleDraw
from ldm.data.sources.no_caption import MissingCaption
from ldm.noise import choice, permutation, uniform

_DIRECTION = re.compile(
    r"(left|right)(s|most|wards?|hand|handed)?"
    r"|(anti|counter)?clockwise"
    r"|(north|south)?(east|west)(ern|wards?)?"
)
_KEEP_FIRST, _SEPARATOR = 1, ","

MOST_ORDERS = 24
"""Shuffled captions with more possible orders than this are not listed for the cache (four tags have 24)."""


class CaptionSettings(Settings):
    """What is done to captions in each epoch. Not part of any cache key."""

    dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="probability that a caption is replaced by an empty one, which trains the unconditional model",
    )
    shuffle_tags: bool = Field(False, description="shuffle the parts of each caption in every epoch")
    keep_first: int = Field(
        _KEEP_FIRST, ge=0, description="with shuffle_tags: the first N parts keep their place"
    )
    separator: str = Field(
        _SEPARATOR, min_length=1, description="with shuffle_tags: what separates the parts"
    )
    missing: MissingCaption = Field(
        "error",
        description="what to do with images that have no caption: error refuses them; empty gives them an empty "
        "caption; filename and folder make one from the file's or folder's name",
    )
    prefix: str = Field("", description="text before every caption, except the empty ones of dropout")
    suffix: str = Field("", description="text after every caption, except the empty ones of dropout")

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
    """The words of a caption that are wrong for a mirrored image, in order, each once."""
    words = re.findall(r"[^\W\d_]+", caption.casefold())
    return list(dict.fromkeys(word for word in words if _DIRECTION.fullmatch(word)))


def flip_allowed(sample: Sample) -> bool:
    """Whether a sample may be mirrored: as its `flip` column says, else if no caption or text names a direction."""
    if sample.may_flip is not None:
        return sample.may_flip
    return not any(directional_words(text) for text in (*sample.captions, *sample.texts.values()))


def dropout_draw(key: SampleDraw) -> float:
    """The number in [0, 1) below which `dropout` must lie for a sample to keep its caption."""
    return uniform(*key, "caption dropout")


def caption_for(sample: Sample, settings: CaptionSettings, *, seed: int, epoch: int) -> str:
    """The caption of a sample in an epoch: one of its captions, with tags shuffled if so configured, or "".

    A pure function of (seed, epoch, sample id): the same on any rank and after any restart. Each kind of draw has its
    own key, so dropout changes neither the choice of caption nor the order of tags.
    """
    key = (seed, epoch, sample.sample_id)
    if dropout_draw(key) < settings.dropout:
        return ""
    caption = sample.captions[choice(len(sample.captions), *key, "caption")]
    if settings.shuffle_tags:
        kept, moving = split_tags(caption, settings)
        order = permutation(len(moving), *key, "caption tags")
        caption = _join_tags([*kept, *(moving[i] for i in order)], settings.separator)
    return _add_prefix_and_suffix(caption, settings)


def plain_caption(sample: Sample, settings: CaptionSettings) -> str:
    """A sample's first caption with prefix and suffix, never dropped or shuffled."""
    caption = sample.text
    if settings.shuffle_tags:
        kept, moving = split_tags(caption, settings)
        caption = _join_tags([*kept, *moving], settings.separator)
    return _add_prefix_and_suffix(caption, settings)


def possible_captions(sample: Sample, settings: CaptionSettings) -> list[str] | None:
    """Every caption that `caption_for` can return, each once; None when shuffling makes too many to store."""
    found = [] if settings.dropout == 1 else list(sample.captions)
    if settings.shuffle_tags:
        parts = [split_tags(caption, settings) for caption in found]
        if sum(math.factorial(len(moving)) for _, moving in parts) > MOST_ORDERS:
            return None
        orders = [[*kept, *moved] for kept, moving in parts for moved in permutations(moving)]
        found = [_join_tags(tags, settings.separator) for tags in orders]
    dressed = [_add_prefix_and_suffix(caption, settings) for caption in found]
    return list(dict.fromkeys(dressed + ([""] if settings.dropout > 0 else [])))


def split_tags(caption: str, settings: CaptionSettings) -> tuple[list[str], list[str]]:
    """The stripped parts of a caption: those that keep their place, and those that are shuffled."""
    tags = [tag for part in caption.split(settings.separator) if (tag := part.strip())]
    return tags[: settings.keep_first], tags[settings.keep_first :]


def _join_tags(tags: list[str], separator: str) -> str:
    """Join tags to a caption, with a space after a separator that does not end in one."""
    return (separator if separator[-1].isspace() else f"{separator} ").join(tags)


def _add_prefix_and_suffix(caption: str, settings: CaptionSettings) -> str:
    """Add prefix and suffix with spaces between; a suffix such as ", by night" follows without a space."""
    if not settings.prefix and not settings.suffix:
        return caption
    front = " ".join(part for part in (settings.prefix.strip(), caption.strip()) if part)
    back = settings.suffix.strip()
    apart = " " if front and back and back[0] not in ",.;:!?" else ""
    return front + apart + back
