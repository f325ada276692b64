"""What an autoencoder loses of images: error, structure, colour and detail."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.evaluation.intervals import Estimate, mean_interval
from ldm.evaluation.metrics import WINDOW_PX, psnr, ssim

BANDS = 5
"""Octaves of spatial frequency; the last reaches to the finest detail, half a cycle per pixel."""
LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Scores:
    """Of each image: [B] psnr and ssim, [B, 3] colour shift in levels of 255, [B, bands] detail."""

    psnr: Tensor
    ssim: Tensor
    colour_shift: Tensor
    detail: Tensor


def scores(original: Tensor, reconstruction: Tensor, grey: Tensor | None = None) -> Scores:
    """Compare [B, 3, H, W] in [-1, 1]. Images smaller than the window of SSIM have the SSIM NaN.

    Args:
        grey: [B], which originals have a single channel. Error, structure and detail of their reconstructions are those
            of the mean of the channels; a tint is a colour shift.
    """
    shift = (reconstruction - original).mean(dim=(2, 3)) * 127.5
    reconstruction = reconstruction if grey is None else as_compared(reconstruction, grey)
    small = min(original.shape[-2:]) < WINDOW_PX
    similarity = torch.full((len(original),), torch.nan) if small else ssim(reconstruction, original)
    return Scores(psnr(reconstruction, original), similarity, shift, detail_ratio(original, reconstruction))


def as_compared(reconstruction: Tensor, grey: Tensor) -> Tensor:
    """[B, 3, H, W] where the images that are grey, [B], have the mean of their channels in each of them."""
    single = reconstruction.mean(dim=1, keepdim=True).expand_as(reconstruction)
    return torch.where(grey[:, None, None, None], single, reconstruction)


def at_8_bits(pixel_values: Tensor) -> Tensor:
    """[..., H, W] in [-1, 1] rounded to the levels that an image with 8 bits per channel has."""
    return ((pixel_values + 1) * 127.5).round() / 127.5 - 1


def detail_ratio(original: Tensor, reconstruction: Tensor, num_bands: int = BANDS) -> Tensor:
    """The power of the reconstruction divided by that of the original in each octave of frequency, [B, bands].

    Below 1 detail is lost, above 1 it was made up. From coarse to fine; of the luminance. A band without power in the
    original is NaN.
    """
    spectra = [_spectrum(each) for each in (original, reconstruction)]
    height, width = original.shape[-2:]
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    radius = (rows.square() + columns.square()).sqrt()
    ratios = []
    for band in range(num_bands):
        upper = 0.5 * 2.0 ** (band + 1 - num_bands)
        lower = 0.0 if band == 0 else upper / 2
        top = torch.inf if band == num_bands - 1 else upper  # the corners of the spectrum too
        inside = (radius > lower) & (radius <= top)
        before, after = (each[:, inside].sum(dim=1) for each in spectra)
        ratios.append(torch.where(before > 1e-9 * height * width, after / before, torch.nan))
    return torch.stack(ratios, dim=1)


def _spectrum(images: Tensor) -> Tensor:
    """The power of the luminance, [B, H, W // 2 + 1]."""
    weights = images.new_tensor(LUMINANCE)[:, None, None]
    power: Tensor = torch.fft.rfft2((images * weights).sum(dim=1).double()).abs().square()
    return power


def summary(found: Scores) -> dict[str, Any]:
    """Means with intervals over images, for JSON."""
    detail = {f"detail_octave_{band + 1}": found.detail[:, band] for band in range(found.detail.shape[1])}
    shifts = {f"{name}_shift": found.colour_shift[:, i] for i, name in enumerate(("red", "green", "blue"))}
    numbers: Mapping[str, Tensor] = {"psnr_db": found.psnr, "ssim": found.ssim, **shifts, **detail}
    return {name: mean_of(values) for name, values in numbers.items()}


def mean_of(values: Tensor) -> dict[str, Any]:
    """The mean of [B] with its interval, for JSON; NaN is left out."""
    known = values[~values.isnan()]
    if not len(known):
        return {"value": None, "low": None, "high": None, "num_images": 0}
    estimate: Estimate = mean_interval(known)
    low, high = (None if each != each else each for each in (estimate.low, estimate.high))
    return {"value": estimate.value, "low": low, "high": high, "num_images": len(known)}


def worst(found: Scores, number: int = 10) -> Iterator[int]:
    """The images with the lowest PSNR, the worst first."""
    yield from (int(i) for i in torch.argsort(found.psnr, stable=True)[:number])
