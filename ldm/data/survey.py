"""Read and decode every image once before the run, so that no damaged one stops it halfway."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ldm.data.duplicates import perceptual_hash
from ldm.data.image_index import ImageIndex
from ldm.data.masks import AlphaMask
from ldm.data.sample import ImageInfo, ImageSource, Refusal, Sample
from ldm.errors import UserError
from ldm.io.images import open_image_noted

_NUM_NAMED = 10


def survey(
    samples: Sequence[Sample],
    image_index: ImageIndex | None,
    *,
    rank: int = 0,
    num_processes: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, ImageInfo | Refusal]:
    """What decoding finds out about each sample's images, by sample id, or why the sample cannot be used.

    Each image is read and fully decoded once, even if several samples share it, and not at all if the index has it.
    A loss mask must have the image's size and must not be black everywhere. Further images must have the aspect ratio
    of the main image; what is found out about them is in `ImageInfo.named`.

    Args:
        image_index: what earlier runs found out, or None to read every image.
        rank: of this process, which decodes every `num_processes`-th image; together the processes decode all.
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


def content_hashes(images: Iterable[ImageSource], image_index: ImageIndex | None) -> dict[ImageSource, str]:
    """SHA-256 of each image's encoded bytes, in hex. Images that the index has are not read.

    Raises:
        UserError: an image is missing or cannot be decoded.
    """
    surveyor = _Surveyor(image_index)
    return {image: surveyor.facts(image).content_hash for image in images}


class _Surveyor:
    """Decodes images, those with the same bytes once."""

    def __init__(self, image_index: ImageIndex | None) -> None:
        self.image_index = image_index
        self.by_content: dict[str, ImageInfo] = {}

    def facts_or_fault(
        self, image: ImageSource, mask: ImageSource | None, named: tuple[tuple[str, ImageSource], ...]
    ) -> ImageInfo | str:
        """What was found out about an image, or one line on what is wrong with it, its mask or a further image."""
        try:
            facts = self.facts(image)
            if mask is not None:
                _check_mask(mask, self.facts(mask), facts)
            further = {name: self._further(name, source, facts) for name, source in named}
        except UserError as error:
            return " ".join(str(error).split())
        except MemoryError:
            return f"{image.name}: too large for the memory of this machine: shrink it"
        return replace(facts, named=further) if further else facts

    def _further(self, name: str, source: ImageSource, main: ImageInfo) -> ImageInfo:
        """What was found out about a further image, which must have the aspect ratio of the main image."""
        facts = self.facts(source)
        _check_aspect(name, source, facts, main)
        return facts

    def facts(self, image: ImageSource) -> ImageInfo:
        stamp = image.stamp()  # before reading, so that a file that changes meanwhile gets another stamp
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
    _, brightest = picture.convert("L").getextrema()  # in grey, as the loss uses the mask
    size = picture.width, picture.height
    return ImageInfo(content_hash, *size, perceptual_hash(picture), tuple(notes), is_black=brightest == 0)


def _check_mask(mask: ImageSource, mask_facts: ImageInfo, facts: ImageInfo) -> None:
    if mask_facts.is_black:
        what = "transparent" if isinstance(mask, AlphaMask) else "black"
        raise UserError(
            f"{mask.name}: {what} everywhere, so nothing of the image would count", "fix it or remove it"
        )
    if (mask_facts.width, mask_facts.height) != (facts.width, facts.height):
        sizes = f"{mask_facts.width} x {mask_facts.height}, its image {facts.width} x {facts.height}"
        raise UserError(f"{mask.name}: the mask is {sizes}", "give both the same size")


def _check_aspect(name: str, source: ImageSource, facts: ImageInfo, main: ImageInfo) -> None:
    """Refuse an image whose aspect ratio differs from its main image's by more than rounding, one pixel."""
    sides = (facts.width, facts.height, main.width, main.height)
    if abs(facts.width * main.height - main.width * facts.height) >= max(sides):
        sizes = f"{facts.width} x {facts.height}, its image {main.width} x {main.height}"
        raise UserError(f"{source.name}: the image {name!r} is {sizes}", "give both the same aspect ratio")


def check_bad_fraction(num_found: int, refusals: Sequence[Refusal], max_bad_fraction: float) -> None:
    """Stop if too many samples cannot be used.

    Args:
        num_found: the number of samples, used or refused.
        refusals: those of reading and those of the survey.
        max_bad_fraction: the largest fraction of refusals to accept, 0 to 1.

    Raises:
        UserError: there are more; the message gives the first ten reasons.
    """
    if not num_found or len(refusals) / num_found <= max_bad_fraction:
        return
    reasons = list(dict.fromkeys(refusal.reason for refusal in refusals))
    named = "; ".join(reasons[:_NUM_NAMED]) + ("; ..." if len(reasons) > _NUM_NAMED else "")
    raise UserError(
        f"{len(refusals)} of {num_found} samples are bad, more than max_bad_fraction {max_bad_fraction:g} allows"
        f" ({named})",
        "fix or remove them",
    )
