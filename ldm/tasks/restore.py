"""Restoring: an image is made that a damaged one of the same size comes from.

The latents of the damaged image are appended to the noisy ones, and how damaged it is, from 0 to 1, is the class label
in per cent. In training the damage is made by `ldm.data.degradations`; in use the strength is a setting.

Axis letters: B batch, C latent channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ldm.config import Settings
from ldm.data.degradations import DegradationSettings, degrade_drawn
from ldm.data.sample import MAIN_INPUT, TaskInputs
from ldm.models.generation_settings import GenerationSettings
from ldm.models.loading.trained_task import RESTORE_LABELS
from ldm.tasks.task import Encode, Task, TrainingInputs
from ldm.tasks.text_to_image import TextToImage
from ldm.types import Conditioning

DAMAGED, STRENGTH = "damaged", "damage_strength"
"""The damaged image and how damaged it is, by the names that they have in a batch."""


def label_of(strength: Tensor) -> Tensor:
    """Strengths [B] from 0 to 1 as class labels, in per cent."""
    return (strength * (RESTORE_LABELS - 1)).round().long()


@dataclass(frozen=True)
class Restore(TextToImage):
    """C channels are added, for the latents of the damaged image."""

    name: str = "restore"
    trained_as: str = "restore"
    inputs: TaskInputs = TaskInputs(  # noqa: RUF009  (frozen)
        images=(MAIN_INPUT,), derive=partial(degrade_drawn, settings=DegradationSettings())
    )
    encodes_in_training: bool = True
    given: Mapping[str, str] = field(default_factory=lambda: {"image": DAMAGED})
    num_class_labels: int = RESTORE_LABELS
    in_windows: bool = True

    def configured(self, options: Settings | None) -> Task:
        """With the degradations of the configuration."""
        if options is None:
            return self
        assert isinstance(options, DegradationSettings)
        return replace(self, inputs=replace(self.inputs, derive=partial(degrade_drawn, settings=options)))

    def concat_channels(self, latent_channels: int) -> int:
        """The latents of the damaged image."""
        return latent_channels

    def training_conditioning(self, prompt: Conditioning, inputs: TrainingInputs) -> Conditioning:
        """The image as it was damaged for the sample, and how much."""
        latents = inputs.encode(inputs.drawn[DAMAGED])
        return replace(prompt, concat=latents, class_labels=label_of(inputs.drawn[STRENGTH]))

    def prepared(
        self, images: Mapping[str, Tensor], settings: GenerationSettings, seeds: Sequence[int]
    ) -> Mapping[str, Tensor]:
        """With the strength of the settings; in previews, each image has its own already."""
        image = images[DAMAGED]
        strength = images.get(STRENGTH, torch.full((len(image),), settings.restore, device=image.device))
        return {DAMAGED: image, STRENGTH: strength}

    def generation_conditioning(
        self, prompt: Conditioning, images: Mapping[str, Tensor], encode: Encode
    ) -> Conditioning:
        """The image given, and how damaged it is."""
        return replace(prompt, concat=encode(images[DAMAGED]), class_labels=label_of(images[STRENGTH]))
