"""The cache of image moments: what the frozen autoencoder returns for each crop and flip of each image.

It cannot become stale: the key of an entry is a hash of the image's bytes, the transform and the autoencoder's weights,
so anything that changes gets a new key. An entry is the posterior's mean and log-variance, never a sample from it.
Entries are verified whenever they are read. Nothing is written to the folder of the data.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ldm.data.batches import ReadImage
from ldm.data.cache.fill import Filled, Processes, encode_again, fill_store
from ldm.data.cache.keys import entry_key
from ldm.data.cache.shards import MISSING_HINT, Parts, ShardStore
from ldm.data.captions import flip_allowed
from ldm.data.prepare import BucketedSample
from ldm.data.sample import MAIN_INPUT, ImageInput
from ldm.errors import UserError
from ldm.io.messages import say_warning

BATCH_SIZE = 8
"""Images that are encoded together."""


@dataclass(frozen=True)
class CacheItem:
    """An entry that the cache shall hold.

    Attributes:
        key: from `entry_key`.
        load: returns its pixel values [3, H, W] in [-1, 1]; may be called in a thread.
    """

    key: str
    load: Callable[[], Tensor]


VariantKeys = list[dict[tuple[int, bool], str]]
"""For each sample the cache key of each (crop, flip) that may be drawn."""


def variant_keys(
    placed: Sequence[BucketedSample],
    autoencoder_hash: str,
    flip: bool,
    image: ImageInput = MAIN_INPUT,
) -> VariantKeys:
    """The cache keys of all variants of one image of every sample."""
    return [
        {
            (crop, flipped): entry_key(
                one.content_hash(image.name), one.variant_key(crop, flipped), autoencoder_hash
            )
            for crop in range(len(one.placement.crops))
            for flipped in ((False, True) if flip and flip_allowed(one.sample) else (False,))
        }
        for one in placed
    ]


def cache_items(
    placed: Sequence[BucketedSample],
    keys: VariantKeys,
    image: ImageInput = MAIN_INPUT,
) -> list[CacheItem]:
    """Every variant of one image of every sample, for `MomentsCache.fill`; grouped by size."""
    return [
        CacheItem(key, partial(one.input_pixels, image, *variant))
        for one, variants in sorted(zip(placed, keys, strict=True), key=lambda pair: pair[0].size)
        for variant, key in variants.items()
    ]


class MomentsCache:
    """Key -> the moments of one crop and flip of an image, [2C, h, w] float32.

    Args:
        folder: the cache's folder, `cache_root()` unless the settings name another.
        autoencoder_hash: `tensors_hash` of the autoencoder.
        on_damage: called with one line for every damaged shard and entry; by default it prints to stderr.
    """

    def __init__(
        self, folder: Path, autoencoder_hash: str, on_damage: Callable[[str], None] = say_warning
    ) -> None:
        self.store = ShardStore(folder, "moments", autoencoder_hash, on_damage)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys without a valid entry, each once, in order. Reads and verifies all others."""
        self.store.refresh()
        return [key for key in dict.fromkeys(keys) if self.store.get(key) is None]

    def fill(
        self,
        wanted: Sequence[CacheItem],
        encode_images: Callable[[Tensor], Tensor],
        *,
        rank: int = 0,
        num_processes: int = 1,
        barrier: Callable[[], None] = lambda: None,
        batch_size: int = BATCH_SIZE,
        num_loaders: int = 4,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Filled:
        """Encode what is missing; afterwards every process can read all of `wanted`.

        Every process passes the same `wanted`. A batch is `batch_size` consecutive items, encoded separately for each
        size, so `wanted` should be sorted by size. If killed, it keeps the shards already written.

        Args:
            encode_images: pixel_values [B, 3, H, W] -> moments [B, 2C, h, w]; called only if something is missing.
            rank: of this process; `barrier` waits for all `num_processes`.
            num_loaders: threads that load images ahead.
            on_progress: called with the number of entries of this process's share that are there.

        Raises:
            UserError: an image is gone or has changed, the disk is full or not writable, or moments are not finite.
        """
        return fill_store(
            self.store,
            wanted,
            partial(_encode_batches, encode_images, num_loaders),
            batch_size=batch_size,
            processes=Processes(rank, num_processes, barrier),
            on_progress=on_progress,
        )

    def encode_again_from(
        self,
        wanted: Callable[[], Sequence[CacheItem]],
        encode_images: Callable[[Tensor], Tensor],
        *,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Let `read` encode what was lost since the cache was filled, in the same batches.

        Args:
            wanted: returns what `fill` was given.
        """
        encode = partial(_encode_batches, encode_images, 1)
        self.store.encode_again = partial(encode_again, wanted, encode, batch_size)

    def read(self, key: str) -> Tensor:
        """The moments of an entry, [2C, h, w] float32, as a copy; encoded again if they were lost.

        Raises:
            UserError: it is missing or damaged, and cannot be encoded here.
        """
        parts = self.store.read(key)
        if parts is None:
            raise UserError(f"the entry {key} is not in the cache {self.store.folder}", MISSING_HINT)
        return parts["moments"]


def _encode_batches(
    encode_images: Callable[[Tensor], Tensor], num_loaders: int, batches: Iterable[Sequence[CacheItem]]
) -> Iterator[list[Parts]]:
    for pixel_values in _loaded(batches, num_loaders):
        yield [{"moments": moments} for moments in _encode(pixel_values, encode_images)]


def moments_reader(cache: MomentsCache, keys: VariantKeys) -> ReadImage:
    """Reads moments [2C, h, w] from a cache that has been filled."""
    return partial(_read_moments, cache, keys)


def _read_moments(cache: MomentsCache, keys: VariantKeys, index: int, crop: int, flip: bool) -> Tensor:
    """Not a lambda, so that the dataset can be pickled for a loader process."""
    return cache.read(keys[index][crop, flip])


def _loaded(batches: Iterable[Sequence[CacheItem]], num_loaders: int) -> Iterator[list[Tensor]]:
    """The pixel values of each batch in turn, while threads load the next one."""
    with ThreadPoolExecutor(num_loaders) as pool:
        ahead: list[Future[Tensor]] = []
        for batch in batches:
            ready, ahead = ahead, [pool.submit(item.load) for item in batch]
            if ready:
                yield [future.result() for future in ready]
        if ahead:
            yield [future.result() for future in ahead]


@torch.no_grad()
def _encode(images: Sequence[Tensor], encode_images: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The moments of images [3, H, W], in order; images of the same size are encoded together."""
    rows_of: dict[torch.Size, list[int]] = {}
    for row, image in enumerate(images):
        rows_of.setdefault(image.shape, []).append(row)
    found: dict[int, Tensor] = {}
    for rows in rows_of.values():
        moments = encode_images(torch.stack([images[row] for row in rows])).detach().float().cpu()
        if not torch.isfinite(moments).all():
            raise UserError("the autoencoder returns moments that are not finite", "use it in float32")
        found |= zip(rows, moments, strict=True)
    return [found[row] for row in range(len(images))]
