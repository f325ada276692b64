"""Read and decode every image once before the run, so that no damaged one stops it halfway."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ldm.data.decode_apart import decode_all
from ldm.data.image_index import ImageIndex
from ldm.data.masks import AlphaMask
from ldm.data.sample import ImageInfo, ImageSource, Refusal, Sample, Stamp, refusal_of
from ldm.errors import UserError

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
    Many images are decoded by one process per core. A loss mask must have the image's size and must not be black
    everywhere. Further images must have the aspect ratio of the main image; what is found out about them is in
    `ImageInfo.named`.

    Args:
        image_index: what earlier runs found out, or None to read every image.
        rank: of this process, which decodes every `num_processes`-th image; together the processes decode all.
        on_progress: called with (done, total) after each image of this process.
    """
    groups = [_images_of(sample) for sample in samples]
    mine = list(dict.fromkeys(groups))[rank::num_processes] if num_processes > 1 else groups
    images = dict.fromkeys(image for group in mine for image in _each(group))
    known = _decode_unknown(images, image_index, num_processes, on_progress)
    chosen = set(mine) if num_processes > 1 else None
    return {
        sample.sample_id: _outcome(sample.sample_id, group, known)
        for sample, group in zip(samples, groups, strict=True)
        if chosen is None or group in chosen
    }


_Images = tuple[ImageSource, ImageSource | None, tuple[tuple[str, ImageSource], ...]]
"""A sample's image, its loss mask and its further images by name."""


def _images_of(sample: Sample) -> _Images:
    return sample.image, sample.loss_mask, tuple(sample.images.items())


def _each(images: _Images) -> Iterator[ImageSource]:
    main, mask, named = images
    yield main
    if mask is not None:
        yield mask
    for _, image in named:
        yield image


def content_hashes(images: Iterable[ImageSource], image_index: ImageIndex | None) -> dict[ImageSource, str]:
    """SHA-256 of each image's encoded bytes, in hex. Images that the index has are not read.

    Raises:
        UserError: an image is missing or cannot be decoded.
    """
    found = {}
    for image, facts in _decode_unknown(dict.fromkeys(images), image_index, 1).items():
        if isinstance(facts, Refusal):
            raise UserError(facts.reason.removesuffix(f": {facts.hint}"), facts.hint)
        found[image] = facts.content_hash
    return found


def _decode_unknown(
    images: Iterable[ImageSource],
    image_index: ImageIndex | None,
    num_processes: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[ImageSource, ImageInfo | Refusal]:
    """What was found out about each image, from the index or by decoding it, which adds it to the index."""
    known: dict[ImageSource, ImageInfo | Refusal] = {}
    unknown: dict[ImageSource, Stamp | None] = {}
    for image in images:
        # before reading, so that a file that changes meanwhile gets another stamp
        stamp = None if image_index is None else image.stamp()
        facts = None if image_index is None else image_index.get(stamp)
        if facts is None:
            unknown[image] = stamp
        else:
            known[image] = facts
    num_known, total = len(known), len(known) + len(unknown)
    if num_known:
        on_progress(num_known, total)
    for done, (image, outcome) in enumerate(decode_all(list(unknown), num_processes), start=num_known + 1):
        known[image] = outcome
        if image_index is not None and isinstance(outcome, ImageInfo):
            image_index.put(unknown[image], outcome)
        on_progress(done, total)
    return known


def _outcome(
    sample_id: str, images: _Images, known: Mapping[ImageSource, ImageInfo | Refusal]
) -> ImageInfo | Refusal:
    """What was found out about a sample's image, or why it, its mask or a further image cannot be used."""
    main, mask, named = images
    for image in _each(images):
        if isinstance(refusal := known[image], Refusal):
            return replace(refusal, sample_id=sample_id)
    facts = _info(known, main)
    if mask is None and not named:
        return facts
    try:
        if mask is not None:
            _check_mask(mask, _info(known, mask), facts)
        for name, source in named:
            _check_aspect(name, source, _info(known, source), facts)
    except UserError as error:
        return refusal_of(sample_id, error)
    further = {name: _info(known, source) for name, source in named}
    return replace(facts, named=further) if further else facts


def _info(known: Mapping[ImageSource, ImageInfo | Refusal], image: ImageSource) -> ImageInfo:
    facts = known[image]
    assert isinstance(facts, ImageInfo)
    return facts


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
        "fix or remove them (`ldm data check` lists them all, and its --fix-list FILE what to do), or raise "
        "max_bad_fraction",
    )
