"""Where the cache is, and its settings.

All runs share one cache. It has a folder for each kind of entry:

    facts/                  what decoding found, by path, size and times of each image file (`ldm.data.image_index`)
    moments/AUTOENCODER/    shards of image moments (`ldm.data.cache.moments`)
    prompts/TEXT_ENCODER/   shards of caption embeddings (`ldm.data.cache.prompt_cache`)
    openvino/               networks converted for OpenVINO
"""

import os
from contextlib import suppress
from pathlib import Path

from pydantic import Field

from ldm.config import Settings


class CacheSettings(Settings):
    """Where the outputs of the frozen networks are kept from run to run."""

    enabled: bool = Field(True, description="encode each image and caption once instead of every epoch")
    folder: Path | None = Field(
        None, description="default: $LDM_CACHE_DIR, else open-ldm in the user's cache folder"
    )
    rehash: bool = Field(False, description="read every image again instead of trusting its size and times")

    mask_variants: int = Field(
        0,
        ge=0,
        description="for inpainting: how many masks each image has, which are then cached as well, so that training "
        "neither reads nor encodes images; 8 is a good start. 0: new masks in every epoch, whose masked images are "
        "encoded in each step",
    )

    def root(self) -> Path:
        """The cache's folder."""
        return self.folder.expanduser() if self.folder else cache_root()


def cache_root() -> Path:
    """$LDM_CACHE_DIR, or `open-ldm` in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("LDM_CACHE_DIR"):
        return Path(own).expanduser()
    # the specification says to ignore it unless it is absolute
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "open-ldm"


def mark_used(folder: Path) -> None:
    """Record that a converted network is in use, so that pruning by age keeps it; does nothing in a read-only cache."""
    with suppress(OSError):
        os.utime(folder)
