"""Every image read and decoded once before the run, so that no bad one is met in the middle of it."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from ldm.data.duplicates import perceptual_hash
from ldm.data.masks import AlphaMask
from ldm.data.sample import ImageInfo, ImageSource, Refusal, Sample, Stamp
from ldm.errors import UserError
from ldm.io.images import open_image_noted

_NUM_NAMED = 10


class FactsMemo(Protocol):
    """What was found out in earlier runs."""

    def get(self, stamp: Stamp) -> ImageInfo | None:
        """The facts of an image whose stamp has not changed, or None."""
        ...

    def put(self, stamp: Stamp, facts: ImageInfo) -> None:
        """Keep the facts of an image under its stamp."""
        ...


def survey(
    samples: Sequence[Sample],
    image_index: FactsMemo | None,
    *,
    rank: int = 0,
    num_processes: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, ImageInfo | Refusal]:
    """The facts of each sample's image by the sample's id, or why it cannot be used.

    An image is read and fully decoded, once however many samples show it, and not at all when the memo knows it.
    A mask is decoded too, must have the image's size and let something of it count. So are the sample's further images,
    which must have its aspect ratio; their facts are `ImageInfo.named`.

    Args:
        memo: what was found out in earlier runs, or None to distrust it.
        rank: of this process; a process does every `num_processes`-th image, and the shares together are everything.
        on_progress: called with (done, total) after each image of this process.
    """
    mine = list(dict.fromkeys(map(_images_of, samples)))[rank::num_processes]
    surveyor = _Surveyor(image_index)
    found: dict[_Images, ImageInfo | str] = {}
    for done, images in enumerate(mine, start=1):
        found[images] = surveyor.facts_or_fault(*images)
        on_progress(done, len(mine))
    outcomes = {s.sample_id: found.get(_images_of(s)) for s in samples}
    return {
        sample_id: outcome if isinstance(outcome, ImageInfo) else Refusal(sample_id, outcome)
        for sample_id, outcome in outcomes.items()
        if outcome is not None
    }


_Images = tuple[ImageSource, ImageSource | None, tuple[tuple[str, ImageSource], ...]]
"""A sample's image, its loss mask and its further images by name."""


def _images_of(sample: Sample) -> _Images:
    return sample.image, sample.loss_mask, tuple(sample.images.items())


def content_hashes(images: Iterable[ImageSource], image_index: FactsMemo | None) -> dict[ImageSource, str]:
    """SHA-256 of each image's encoded bytes, in hex. An image is read only where the memo does not know it.

    Raises:
        UserError: an image is gone or cannot be decoded.
    """
    surveyor = _Surveyor(image_index)
    return {image: surveyor.facts(image).content_hash for image in images}


class _Surveyor:
    """Looks at images, each content once."""

    def __init__(self, image_index: FactsMemo | None) -> None:
        self.image_index = image_index
        self.by_content: dict[str, ImageInfo] = {}

    def facts_or_fault(
        self, image: ImageSource, mask: ImageSource | None, named: tuple[tuple[str, ImageSource], ...]
    ) -> ImageInfo | str:
        """An image's facts, or in one line what is wrong with it, with its mask or with a further image."""
        try:
            facts = self.facts(image)
            if mask is not None:
                _check_mask(mask, self.facts(mask), facts)
            further = {name: self._further(name, source, facts) for name, source in named}
        except UserError as error:
            return " ".join(str(error).split())
        except MemoryError:
            return f"{image.name}: too large for this machine's memory: shrink it"
        return replace(facts, named=further) if further else facts

    def _further(self, name: str, source: ImageSource, main: ImageInfo) -> ImageInfo:
        """The facts of a sample's further image, which has the aspect ratio of its main image."""
        facts = self.facts(source)
        _check_aspect(name, source, facts, main)
        return facts

    def facts(self, image: ImageSource) -> ImageInfo:
        stamp = image.stamp()  # before reading: a file that changes meanwhile has another one afterwards
        if self.image_index is None or stamp is None:
            return self._look(image)
        facts = self.image_index.get(stamp)
        if facts is None:
            facts = self._look(image)
            self.image_index.put(stamp, facts)
        return facts

    def _look(self, image: ImageSource) -> ImageInfo:
        data = image.read()
        content_hash = hashlib.sha256(data).hexdigest()
        if content_hash not in self.by_content:
            self.by_content[content_hash] = _decode(data, image.name, content_hash)
        return self.by_content[content_hash]


def _decode(data: bytes, name: str, content_hash: str) -> ImageInfo:
    picture, notes = open_image_noted(data, name=name)
    _, brightest = picture.convert("L").getextrema()  # grey, as the loss takes a mask
    size = picture.width, picture.height
    return ImageInfo(content_hash, *size, perceptual_hash(picture), tuple(notes), is_black=brightest == 0)


def _check_mask(mask: ImageSource, mask_facts: ImageInfo, facts: ImageInfo) -> None:
    if mask_facts.is_black:
        what = "transparent" if isinstance(mask, AlphaMask) else "black"
        raise UserError(
            f"{mask.name}: {what} everywhere, so nothing of the image counts", "mend it or take it out"
        )
    if (mask_facts.width, mask_facts.height) != (facts.width, facts.height):
        sizes = f"{mask_facts.width} x {mask_facts.height}, its image {facts.width} x {facts.height}"
        raise UserError(f"{mask.name}: the mask is {sizes}", "give both the same size")


def _check_aspect(name: str, source: ImageSource, facts: ImageInfo, main: ImageInfo) -> None:
    """Refuse an image that is more than a pixel away from its main image's aspect ratio."""
    sides = (facts.width, facts.height, main.width, main.height)
    if abs(facts.width * main.height - main.width * facts.height) >= max(sides):
        sizes = f"{facts.width} x {facts.height}, its image {main.width} x {main.height}"
        raise UserError(f"{source.name}: the image {name!r} is {sizes}", "give both the same aspect ratio")


def check_bad_fraction(num_found: int, refusals: Sequence[Refusal], max_bad_fraction: float) -> None:
    """Stop when too many samples are bad.

    Args:
        num_found: how many there are, used or refused.
        refusals: all of them, those of reading and those of the survey.
        max_bad_fraction: the largest share of bad ones to go on with, 0 to 1.

    Raises:
        UserError: there are more; the first ten reasons are named.
    """
    if not num_found or len(refusals) / num_found <= max_bad_fraction:
        return
    reasons = list(dict.fromkeys(refusal.reason for refusal in refusals))
    named = "; ".join(reasons[:_NUM_NAMED]) + ("; ..." if len(reasons) > _NUM_NAMED else "")
    raise UserError(
        f"{len(refusals)} of {num_found} samples are bad, more than max_bad_fraction {max_bad_fraction:g} allows"
        f" ({named})",
        "mend them or take them out",
    )
