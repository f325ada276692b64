"""Encode and decode images of a data set with a model's autoencoder, and keep the scores and the worst images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.data.batches import ImageTransform
from ldm.data.cache.keys import tensors_hash
from ldm.data.sample import Sample
from ldm.data.sources.reading import SourceSettings, read_sources
from ldm.data.sources.scan import refuse_inside
from ldm.errors import UserError, warn
from ldm.evaluation.reconstruction import Scores, scores, summary, worst
from ldm.noise import permutation
from ldm.pipeline.pipeline import load_pipeline

BATCH = 8


@dataclass(frozen=True)
class AutoencoderAudit:
    """What was measured.

    Attributes:
        size: height and width in pixels.
        ids: of the images that were measured.
        found: their scores.
        shown: the ids of the worst with the original and the reconstruction, [3, H, W] in [-1, 1].
    """

    size: tuple[int, int]
    ids: tuple[str, ...]
    autoencoder_hash: str
    found: Scores
    shown: tuple[tuple[str, Tensor, Tensor], ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "num_images": len(self.ids),
            "size": list(self.size),
            "autoencoder_hash": self.autoencoder_hash,
            "resize": "Lanczos with antialias to cover the size, then centre crop; 8 bits per channel",
            "numbers": summary(self.found),
            "worst": [
                {"sample_id": self.ids[i], "psnr_db": float(self.found.psnr[i])} for i in worst(self.found)
            ],
        }


@torch.no_grad()
def audit_autoencoder(
    model: str,
    data: str,
    num_images: int,
    size: tuple[int | None, int | None],
    output: Path,
    *,
    device: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> AutoencoderAudit:
    """Measure up to `num_images` images, chosen at random but always the same ones.

    Args:
        size: height and width; None is the model's own.

    Raises:
        UserError: the model or the data is missing, no image can be used, or a side is not a multiple of what the
            autoencoder needs.
    """
    refuse_inside(f"--output {output}", output, Path(data))
    reading = read_sources([SourceSettings(path=data)], missing="empty", tolerant=True)
    pipeline = load_pipeline(model, device=device)
    autoencoder, defaults = pipeline.autoencoder, pipeline.defaults
    height, width = size[0] or defaults.height, size[1] or defaults.width
    multiple = autoencoder.pixels_per_latent
    if height % multiple or width % multiple:
        raise UserError(f"{width} x {height} pixels", f"both must be multiples of {multiple} for this model")
    transform = ImageTransform(height, width)
    chosen = permutation(len(reading.samples), "audit")[:num_images]
    ids, parts, reconstructions = [], [], _Worst()
    waiting: list[tuple[Sample, Tensor]] = []
    for done, index in enumerate(chosen, 1):
        sample = reading.samples[index]
        try:
            waiting.append((sample, transform(sample)))
        except UserError as error:
            warn(str(error))
        if waiting and (len(waiting) == BATCH or done == len(chosen)):
            originals = torch.stack([pixels for _, pixels in waiting])
            moments = autoencoder.encode(originals.to(pipeline.device))
            latents = autoencoder.scale(moments.chunk(2, dim=1)[0])
            decoded = autoencoder.decode(latents).float().clamp(-1, 1).cpu()
            parts.append(scores(originals, decoded))
            for (one, original), copy, value in zip(waiting, decoded, parts[-1].psnr.tolist(), strict=True):
                ids.append(one.sample_id)
                reconstructions.add(value, (one.sample_id, original, copy))
            waiting = []
        on_progress(done, len(chosen))
    if not ids:
        raise UserError(f"--data {data} has no usable image", "`ldm data check` says why")
    found = Scores(
        *(torch.cat([getattr(p, name) for p in parts]) for name in ("psnr", "ssim", "colour_shift", "detail"))
    )
    return AutoencoderAudit(
        (height, width), tuple(ids), tensors_hash(autoencoder.vae), found, reconstructions.kept()
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
