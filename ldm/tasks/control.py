"""Control by images: a ControlNet learns to follow edges, depth, poses or segmentations (Zhang et al. 2023).

A training sample has its control image as `control_file_name`. In use, control is no task of its own: a ControlNet
works with every task of its base model, see `ldm.models.control.controlnet`.

Axis letters: B batch, H W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from ldm.data.sample import ImageInput, TaskInputs
from ldm.tasks.task import Encode, TrainingInputs
from ldm.tasks.text_to_image import TextToImage
from ldm.types import Conditioning

CONTROL, LABELS = "control", "control-labels"

MAPS = TaskInputs(images=(ImageInput(CONTROL, kind="control"),))
LABEL_MAPS = TaskInputs(images=(ImageInput(CONTROL, kind="labels"),))


@dataclass(frozen=True)
class Control(TextToImage):
    """The control image in [0, 1] is a hint for the ControlNet; the denoiser itself is that of text-to-image."""

    name: str = CONTROL
    trained_as: str = CONTROL
    inputs: TaskInputs = MAPS
    trains_controlnet: bool = True
    given: Mapping[str, str] = field(default_factory=lambda: {CONTROL: CONTROL})

    def training_conditioning(self, prompt: Conditioning, inputs: TrainingInputs) -> Conditioning:
        """The hint, also for a sample whose caption is dropped."""
        return replace(prompt, hints=(inputs.pixel_values[CONTROL],))

    def generation_conditioning(
        self, prompt: Conditioning, images: Mapping[str, Tensor], encode: Encode
    ) -> Conditioning:
        """The control image, for previews."""
        return replace(prompt, hints=(images[CONTROL],))


MAP_CONTROL = Control()
LABEL_CONTROL = Control(name=LABELS, trained_as=LABELS, inputs=LABEL_MAPS)
"""For maps whose colours are classes, which are resized without mixing them."""
