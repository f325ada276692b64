"""A cache of small moments from a fake autoencoder, and ways to damage its files."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm.data.cache.moments import CacheItem, MomentsCache
from ldm.noise import generator_for

SIZE_PX = 8
MODEL = "a" * 64


def key_of(name: str) -> str:
    """The key of the image with this name: 64 hex digits."""
    return hashlib.sha256(name.encode()).hexdigest()


def pixels_of(name: str, width: int = SIZE_PX) -> Tensor:
    """A different image for each name, [3, 8, width]."""
    return torch.randn(3, SIZE_PX, width, generator=generator_for(name))


def item(name: str, width: int = SIZE_PX) -> CacheItem:
    return CacheItem(key_of(name), lambda: pixels_of(name, width))


def items(names: Sequence[str]) -> list[CacheItem]:
    return [item(name) for name in names]


class Encoder:
    """pixel_values [B, 3, 8, 8] -> moments [B, 4, 4, 4]. Like on a GPU, the result varies slightly with the batch."""

    def __init__(self) -> None:
        self.num_images = 0

    def __call__(self, pixel_values: Tensor) -> Tensor:
        self.num_images += len(pixel_values)
        pooled = torch.nn.functional.avg_pool2d(pixel_values, 2)
        return torch.cat([pooled, pooled.mean(1, keepdim=True)], dim=1) + 1e-6 * pixel_values.sum()


def filled(folder: Path, names: Sequence[str], model: str = MODEL) -> MomentsCache:
    """A cache with the moments of `names`, in batches of two."""
    cache = MomentsCache(folder, model)
    cache.fill(items(names), Encoder(), batch_size=2)
    return cache


def shards(folder: Path) -> list[Path]:
    """The shards of moments in a cache's folder."""
    return sorted(folder.glob("moments/*/moments-*.safetensors"))


def flip_byte(path: Path, offset: int) -> None:
    """Change one byte of a file in place, like a bad disk."""
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(1)
        file.seek(offset)
        file.write(bytes([old[0] ^ 0x10]))


def offset_of(path: Path, key: str) -> int:
    """The position of the first byte of an entry's moments in a shard."""
    from safetensors import safe_open

    handle = safe_open(path, "pt")
    first = handle.get_tensor(f"{key}/moments").flatten().view(torch.uint8).numpy().tobytes()
    return path.read_bytes().index(first)
