"""Encode and decode images of a data set with a model's autoencoder, and keep the scores and the worst images.

Grey images of 16 bits, as medicine and remote sensing have them, are encoded and compared without rounding them to 8
bits, which training would do.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.data.cache.keys import tensors_hash
from ldm.data.sample import Sample
from ldm.data.sources.reading import SourceSettings, read_sources
from ldm.data.sources.scan import refuse_inside
from ldm.errors import UserError, warn
from ldm.evaluation.metrics import psnr
from ldm.evaluation.perceptual import Lpips, check_large_enough, load_lpips
from ldm.evaluation.reconstruction import Scores, as_compared, at_8_bits, mean_of, scores, summary, worst
from ldm.io.images import has_deep_colour, image_to_tensor, open_grey, open_image, resize_and_crop
from ldm.noise import permutation
from ldm.pipeline.pipeline import Pipeline, load_pipeline

BATCH = 8
GREY_16, GREY_8, COLOUR_8, COLOUR_16 = (
    "16-bit grey",
    "8-bit grey",
    "8-bit colour",
    "16-bit colour, read at 8 bits",
)


@dataclass(frozen=True)
class Original:
    """An image as it is compared.

    Attributes:
        kind: its channels and its depth.
        pixels: [3, H, W] in [-1, 1]; of a grey image the three channels are equal.
    """

    sample_id: str
    kind: str
    pixels: Tensor

    @property
    def floor_db(self) -> float:
        """The PSNR of the image rounded to 8 bits, which no 8-bit result can exceed; NaN if it has no more."""
        if self.kind != GREY_16:
            return float("nan")
        return float(psnr(at_8_bits(self.pixels)[None], self.pixels[None]))


def read_original(sample: Sample, height: int, width: int) -> Original:
    """A sample's image at its own depth, scaled to cover the size and center-cropped.

    Raises:
        UserError: the file is damaged, truncated or not an image.
    """
    encoded = sample.image.read()
    grey = open_grey(encoded, name=sample.image.name)
    if grey is None or grey[1] == 8:
        image = open_image(encoded, name=sample.image.name)
        kind = GREY_8 if grey else COLOUR_16 if has_deep_colour(encoded) else COLOUR_8
        return Original(sample.sample_id, kind, image_to_tensor(resize_and_crop(image, height, width)))
    values = torch.from_numpy(np.array(resize_and_crop(grey[0], height, width)))
    return Original(sample.sample_id, GREY_16, (2 * values.clamp(0, 1) - 1).expand(3, -1, -1))


@dataclass(frozen=True)
class AutoencoderAudit:
    """What was measured.

    Attributes:
        size: height and width in pixels.
        ids: of the images that were measured.
        found: their scores.
        kinds: how many there are of each number of channels and depth.
        floor_db: [N] of `Original.floor_db`.
        lpips: [N] of each original and its reconstruction, and what measured it, for JSON; or None.
        shown: the ids of the worst with the original and the reconstruction, [3, H, W] in [-1, 1].
    """

    size: tuple[int, int]
    ids: tuple[str, ...]
    autoencoder_hash: str
    found: Scores
    kinds: dict[str, int]
    floor_db: Tensor
    lpips: tuple[Tensor, dict[str, Any]] | None
    shown: tuple[tuple[str, Tensor, Tensor], ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        lpips = {} if self.lpips is None else {"lpips": self.lpips[1]}
        return {
            "num_images": len(self.ids),
            "size": list(self.size),
            "autoencoder_hash": self.autoencoder_hash,
            **lpips,
            "resize": "Lanczos with antialias to cover the size, then centre crop; at the depth of the source",
            "sources": self.kinds,
            "numbers": self.numbers,
            "worst": [
                {"sample_id": self.ids[i], "psnr_db": float(self.found.psnr[i])} for i in worst(self.found)
            ],
        }

    @property
    def numbers(self) -> dict[str, Any]:
        """The means, with the floor of 8 bits behind the PSNR that it limits."""
        psnr_db = {"psnr_db": mean_of(self.found.psnr)}
        if not self.floor_db.isnan().all():
            psnr_db |= {
                "psnr_db_of_16_bit": mean_of(self.found.psnr.where(~self.floor_db.isnan(), torch.nan))
            }
            psnr_db |= {"psnr_db_of_16_bit_rounded_to_8": mean_of(self.floor_db)}
        lpips = {} if self.lpips is None else {"lpips": mean_of(self.lpips[0])}
        return psnr_db | lpips | summary(self.found)


@torch.no_grad()
def audit_autoencoder(
    model: str,
    data: str,
    num_images: int,
    size: tuple[int | None, int | None],
    output: Path,
    *,
    lpips: bool = False,
    device: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> AutoencoderAudit:
    """Measure up to `num_images` images, chosen at random but always the same ones.

    Args:
        size: height and width; None is the model's own.
        lpips: also measure LPIPS.

    Raises:
        UserError: the model or the data is missing, no image can be used, or a side is not a multiple of what the
            autoencoder needs; LPIPS is not installed, or the images are too small for it.
    """
    refuse_inside(f"--output {output}", output, Path(data))
    reading = read_sources([SourceSettings(path=data)], missing="empty", tolerant=True)
    pipeline = load_pipeline(model, device=device)
    autoencoder, defaults = pipeline.autoencoder, pipeline.defaults
    height, width = size[0] or defaults.height, size[1] or defaults.width
    multiple = autoencoder.pixels_per_latent
    if height % multiple or width % multiple:
        raise UserError(f"{width} x {height} pixels", f"both must be multiples of {multiple} for this model")
    chosen = permutation(len(reading.samples), "audit")[:num_images]
    if lpips:
        check_large_enough(height, width)
    audited = _Audited(pipeline, load_lpips(pipeline.device) if lpips else None)
    waiting: list[Original] = []
    for done, index in enumerate(chosen, 1):
        try:
            waiting.append(read_original(reading.samples[index], height, width))
        except UserError as error:
            warn(str(error))
        if waiting and (len(waiting) == BATCH or done == len(chosen)):
            audited.add(waiting)
            waiting = []
        on_progress(done, len(chosen))
    if not audited.originals:
        raise UserError(f"--data {data} has no usable image", "`ldm data check` says why")
    return audited.result((height, width))


class _Audited:
    """What is kept of the images so far: scores, and the pixels of the worst."""

    def __init__(self, pipeline: Pipeline, lpips: Lpips | None) -> None:
        self.pipeline, self.lpips, self.worst = pipeline, lpips, _Worst()
        self.distances: list[Tensor] = []
        self.originals: list[tuple[str, str, float]] = []
        self.parts: list[Scores] = []

    def add(self, batch: Sequence[Original]) -> None:
        """Encode, decode and compare images of one size."""
        autoencoder = self.pipeline.autoencoder
        originals = torch.stack([one.pixels for one in batch])
        moments = autoencoder.encode(originals.to(self.pipeline.device))
        latents = autoencoder.scale(moments.chunk(2, dim=1)[0])
        decoded = autoencoder.decode(latents).float().clamp(-1, 1).cpu()
        grey = torch.tensor([one.kind in (GREY_8, GREY_16) for one in batch])
        self.parts.append(scores(originals, decoded, grey))
        if self.lpips is not None:
            self.distances.append(self.lpips(originals, as_compared(decoded, grey)))
        self.originals += [(one.sample_id, one.kind, one.floor_db) for one in batch]
        for one, copy, value in zip(batch, decoded, self.parts[-1].psnr.tolist(), strict=True):
            self.worst.add(value, (one.sample_id, one.pixels, copy))

    def result(self, size: tuple[int, int]) -> AutoencoderAudit:
        ids, kinds, floors = zip(*self.originals, strict=True)
        names = ("psnr", "ssim", "colour_shift", "detail")
        found = Scores(*(torch.cat([getattr(part, name) for part in self.parts]) for name in names))
        return AutoencoderAudit(
            size,
            ids,
            tensors_hash(self.pipeline.autoencoder.vae),
            found,
            dict(Counter(kinds)),
            torch.tensor(floors),
            (torch.cat(self.distances), self.lpips.to_dict()) if self.lpips else None,
            self.worst.kept(),
        )


class _Worst:
    """The ten images with the lowest PSNR so far."""

    def __init__(self, number: int = 10) -> None:
        self.number = number
        self.found: list[tuple[float, tuple[str, Tensor, Tensor]]] = []

    def add(self, value: float, shown: tuple[str, Tensor, Tensor]) -> None:
        self.found.append((value, shown))
        self.found.sort(key=lambda each: each[0])
        del self.found[self.number :]

    def kept(self) -> tuple[tuple[str, Tensor, Tensor], ...]:
        return tuple(shown for _, shown in self.found)
