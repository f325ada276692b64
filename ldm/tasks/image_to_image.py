"""Image to image: a prompt changes an image, more the higher the strength (SDEdit, Meng et al. 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ldm.tasks.task import Start
from ldm.tasks.text_to_image import TextToImage

FROM_IMAGE = Start(image="image", strength=0.8)


@dataclass(frozen=True)
class ImageToImage(TextToImage):
    """With any text-to-image model: the image's latents are noised to the level of the first step that is run."""

    name: str = "image-to-image"
    given: Mapping[str, str] = field(default_factory=lambda: {"image": "image"})
    start: Start = FROM_IMAGE
