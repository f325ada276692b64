"""The cache of images that a task draws, such as the masked images of inpainting: some variants of each, by number.

With K variants the draws of an epoch are those of epoch mod K. So the first K epochs are the same with and without the
cache, and so are all others if both repeat their draws.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor

from ldm.data.cache.keys import combined_hash
from ldm.data.cache.moments import CacheItem, VariantKeys
from ldm.data.prepare import BucketedSample
from ldm.data.sample import SampleDraw, TaskInputs


def drawn_keys(
    placed: Sequence[BucketedSample], main: VariantKeys, inputs: TaskInputs, seed: int, variant: int
) -> VariantKeys:
    """The cache keys of one variant of the drawn image of every sample, for each crop and flip.

    Args:
        main: the keys of the main image, from `variant_keys`.
        inputs: of a task with a drawn image.
    """
    image = inputs.drawn_image
    assert image is not None
    return [
        {
            crop_and_flip: combined_hash(
                "drawn", image.name, image.version, key, seed, variant, one.sample.sample_id
            )
            for crop_and_flip, key in keys.items()
        }
        for one, keys in zip(placed, main, strict=True)
    ]


def drawn_items(
    placed: Sequence[BucketedSample],
    keys: Sequence[VariantKeys],
    inputs: TaskInputs,
    seed: int,
) -> Iterator[CacheItem]:
    """Every variant of the drawn image of every sample, for `MomentsCache.fill`; grouped by size.

    Args:
        keys: of each variant, from `drawn_keys`.
    """
    rows = range(len(placed))
    for row in sorted(rows, key=lambda row: placed[row].size):
        for variant, own in enumerate(keys):
            draw = (seed, variant, placed[row].sample.sample_id)
            for (crop, flip), key in own[row].items():
                yield CacheItem(key, partial(drawn_pixels, placed[row], inputs, draw, crop, flip))


def drawn_pixels(one: BucketedSample, inputs: TaskInputs, draw: SampleDraw, crop: int, flip: bool) -> Tensor:
    """The pixel values [3, H, W] of the drawn image of a sample, for the key of its draws."""
    assert inputs.draw is not None and inputs.drawn_image is not None
    made: Tensor = inputs.drawn_image.make(one.pixels(crop, flip), inputs.draw(draw, one.size))
    return made
