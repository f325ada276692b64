"""Networks from folders in the transformers layout that turn images into features: CLIP with both encoders, DINOv2."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from ldm.errors import UserError
from ldm.io.json_files import read_json, read_object
from ldm.models.families.family import Component
from ldm.models.loading.components import load_network, load_tokenizer

COMPONENTS = {
    "clip": Component("transformers", ("CLIPModel",), "transformers.models.clip.modeling_clip", stem="model"),
    "dinov2": Component(
        "transformers", ("Dinov2Model",), "transformers.models.dinov2.modeling_dinov2", stem="model"
    ),
}
"""By the `model_type` of config.json."""

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the RGB channels in [0, 1], for folders without a preprocessor_config.json."""


class _Config(BaseModel):
    model_type: str


@dataclass(frozen=True)
class ImageFeatures:
    """A network with what its images must look like.

    Attributes:
        kind: "clip" or "dinov2".
        side: of its square images, in pixels.
        mean, std: of the RGB channels in [0, 1].
        tokenizer: of CLIP; None for others.
    """

    network: Any
    kind: str
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tokenizer: Any = None

    @torch.no_grad()
    def of_images(self, images: Tensor) -> Tensor:
        """[B, 3, side, side] in [0, 1] -> [B, d]: CLIP's projected image features, or DINOv2's class token."""
        mean, std = (images.new_tensor(each)[:, None, None] for each in (self.mean, self.std))
        output = self.network.vision_model if self.kind == "clip" else self.network
        pooled: Tensor = output(pixel_values=(images - mean) / std).pooler_output
        return self.network.visual_projection(pooled) if self.kind == "clip" else pooled

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """The projected text features of CLIP, [B, d]; a text longer than the context is cut off.

        Raises:
            UserError: the network has no text encoder.
        """
        if self.tokenizer is None:
            raise UserError(f"a {self.kind} network reads no text", "name the folder of a CLIP model")
        encoded = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self._context, return_tensors="pt"
        )
        device = self.network.text_projection.weight.device
        pooled = self.network.text_model(
            input_ids=encoded["input_ids"].to(device), attention_mask=encoded["attention_mask"].to(device)
        ).pooler_output
        projected: Tensor = self.network.text_projection(pooled)
        return projected

    @property
    def _context(self) -> int:
        return int(self.network.config.text_config.max_position_embeddings)


def load_image_features(folder: Path) -> ImageFeatures:
    """A CLIP or DINOv2 model from a folder in the transformers layout.

    Raises:
        UserError: there is none, it is damaged, or it is of another kind.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json", "name the folder of a CLIP or DINOv2 model")
    kind = read_json(folder / "config.json", _Config).model_type
    if kind not in COMPONENTS:
        raise UserError(
            f"{folder} holds a model of type {kind!r}", f"name one of type {' or '.join(COMPONENTS)}"
        )
    network = load_network(COMPONENTS[kind], folder, torch.float32).eval().requires_grad_(False)
    config = network.config.vision_config if kind == "clip" else network.config
    described = folder / "preprocessor_config.json"
    own = read_object(described) if described.is_file() else {}
    side = own.get("crop_size", config.image_size)
    return ImageFeatures(
        network,
        kind,
        int(side["height"] if isinstance(side, dict) else side),
        tuple(own.get("image_mean", CLIP_MEAN)),
        tuple(own.get("image_std", CLIP_STD)),
        load_tokenizer(folder) if kind == "clip" else None,
    )
