"""Duplicate images: those with the same bytes, and those that look alike.

The perceptual hash is the DCT hash of Zauner 2010 ("Implementation and Benchmarking of Perceptual Image Hash
Functions", section 3.2.1) with two changes that icons need: a coefficient near zero counts as not positive
(in a symmetric image half of them are zero, with random signs), and some bits encode the mean colour, so that a red
heart is not a duplicate of a blue one.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.data.sample import ImageInfo

_SIZE_PX = 32
_NUM_WAVES = 7  # frequencies 0 to 6 in each direction: 49 coefficients, without the first and the last
_NOISE_LEVELS, _NOISE_FRACTION = 0.25, 0.01
_MEAN_LIMITS = (20, 70, 128, 185, 235), (-40, -15, -5, 5, 15, 40), (-40, -15, -5, 5, 15, 40)

_NUM_ROWS = 256

_Hashes = NDArray[np.uint64]


def perceptual_hash(image: Image.Image) -> int:
    """64 bits, few of which change when an RGB image is scaled, saved again as JPEG or slightly brightened.

    47 bits are the signs of the low frequencies of the luminance at 32 x 32. 17 bits encode the means of the luminance
    and the two colour differences in unary, so that a small change flips few bits.
    """
    small = hash_size(image if image.mode == "RGB" else image.convert("RGB"))
    pixels = np.asarray(small.convert("YCbCr"))
    waves = _cosines() @ pixels[:, :, 0].astype(np.float64) @ _cosines().T
    structure = waves.ravel()[1:-1]
    limit = max(_NOISE_LEVELS, _NOISE_FRACTION * float(np.abs(structure).max()))
    luminance, blue, red = (total / _SIZE_PX**2 for total in pixels.reshape(-1, 3).sum(axis=0).tolist())
    means = (luminance, blue - 128, red - 128)
    passed = [mean > bound for mean, bounds in zip(means, _MEAN_LIMITS, strict=True) for bound in bounds]
    bits = np.concatenate([structure > limit, passed])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def hash_size(image: Image.Image) -> Image.Image:
    """The image at the size that `perceptual_hash` looks at, 32 x 32."""
    if image.size == (_SIZE_PX, _SIZE_PX):
        return image
    return image.resize((_SIZE_PX, _SIZE_PX), Image.Resampling.BOX, reducing_gap=2.0)


@cache
def _cosines() -> NDArray[np.float64]:
    """The first rows of the DCT-II [7, 32], scaled so that coefficients are in grey levels (0 to 255)."""
    place = (np.arange(_SIZE_PX) + 0.5) * np.pi / _SIZE_PX
    rows = np.cos(np.arange(_NUM_WAVES)[:, None] * place)
    rows[1:] *= np.sqrt(2.0)
    return np.asarray(rows / _SIZE_PX)


def exact_duplicates(facts: Mapping[str, ImageInfo]) -> list[list[str]]:
    """Groups of sample ids whose images have the same bytes, sorted."""
    by_content: dict[str, list[str]] = {}
    for sample_id, found in facts.items():
        by_content.setdefault(found.content_hash, []).append(sample_id)
    return _groups(by_content.values())


def near_duplicates(hashes: Mapping[str, int], max_distance: int = 4) -> list[list[str]]:
    """Groups of sample ids whose images look alike: connected by pairs at most `max_distance` bits apart.

    Two hashes that differ in d bits agree in at least one of d + 1 bands of bits, so only hashes that agree in a band
    are compared. This takes a second or two for 50,000 images.

    Args:
        hashes: `perceptual_hash` by sample id.
    """
    by_hash: dict[int, list[str]] = {}
    for sample_id, value in hashes.items():
        by_hash.setdefault(value, []).append(sample_id)
    values = np.array(list(by_hash), dtype=np.uint64)
    parent = list(range(len(values)))
    for first, second in _close_pairs(values, max_distance):
        parent[_root(parent, first)] = _root(parent, second)
    linked: dict[int, list[str]] = {}
    for index, ids in enumerate(by_hash.values()):
        linked.setdefault(_root(parent, index), []).extend(ids)
    return _groups(linked.values())


def _groups(candidates: Iterable[list[str]]) -> list[list[str]]:
    """The groups with more than one member, sorted."""
    return sorted(sorted(members) for members in candidates if len(members) > 1)


def _root(parent: list[int], index: int) -> int:
    """The root of an index's group (union-find with path halving)."""
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def _close_pairs(values: _Hashes, max_distance: int) -> Iterator[tuple[int, int]]:
    """Index pairs of distinct hashes at most `max_distance` bits apart; a pair may be yielded more than once."""
    for band in range(max_distance + 1):
        mask = np.uint64(sum(1 << bit for bit in range(band, 64, max_distance + 1)))
        for members in _agreeing(values & mask):
            yield from _close_among(values, members, max_distance)


def _agreeing(keys: _Hashes) -> Iterator[NDArray[np.intp]]:
    """The indices of each key that occurs more than once."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order])) + 1
    yield from (members for members in np.split(order, starts) if len(members) > 1)


def _close_among(values: _Hashes, members: NDArray[np.intp], max_distance: int) -> Iterator[tuple[int, int]]:
    """The close pairs among some hashes, computed in blocks of rows so that memory stays linear."""
    among = values[members]
    for start in range(0, len(members), _NUM_ROWS):
        distances = np.bitwise_count(among[start : start + _NUM_ROWS, None] ^ among[start:])
        rows, columns = np.nonzero(np.triu(distances <= max_distance, k=1))
        yield from zip(members[start + rows].tolist(), members[start + columns].tolist(), strict=True)
