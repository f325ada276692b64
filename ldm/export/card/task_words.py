"""What a model card says about the task of a model: its name on the Hub, example prompts, and how it is called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ldm.models.generation_settings import TEXT_TO_IMAGE, GenerationSettings

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class TaskWords:
    """The words and the examples for a task.

    Attributes:
        does: continues "A latent diffusion model that ...".
        use: continues "Images of W x H px like those that the model was trained on, ...".
        prompts: for the samples of a model without a run.
        pipeline_tag: the task on the Hub.
        tags: further tags on the Hub.
        load: lines of Python that load the input images, which have the size given.
        arguments: what the stock pipeline is called with besides prompt, steps and guidance, as Python expressions.
        finish: lines of Python after `image` is made.
        options: of `ldm generate`, for the images.
        sample_note: what a sample and the image beside it show.
        imports: that `load` needs.
    """

    does: str
    use: str
    prompts: tuple[str, ...]
    pipeline_tag: str = "image-to-image"
    tags: tuple[str, ...] = ()
    load: Callable[[Size], tuple[str, ...]] = lambda size: ()
    arguments: Callable[[Size], Mapping[str, str]] = lambda size: {}
    finish: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    sample_note: str = ""
    imports: tuple[str, ...] = ()


OBJECTS = (
    "a red apple", "a cat", "a rocket", "a sunflower", "a slice of pizza", "a house", "a butterfly", "a guitar",
)  # fmt: skip
INSTRUCTIONS = (
    "make it blue", "make it green", "turn it into a drawing", "add a flower", "make it night", "remove the leaf",
    "make the background yellow", "make it golden",
)  # fmt: skip
EDIT_SCALE: float = GenerationSettings().image_guidance_scale
LOAD_IMAGE = ("from diffusers.utils import load_image",)


def _sized(size: Size) -> dict[str, str]:
    return {"height": str(size[1]), "width": str(size[0])}


def _photo(size: Size) -> str:
    return f'photo = load_image("photo.png").resize({size})'


WORDS: Mapping[str, TaskWords] = {
    TEXT_TO_IMAGE: TaskWords(
        does="makes images from text",
        use="from prompts worded like its captions",
        prompts=OBJECTS,
        pipeline_tag="text-to-image",
        arguments=_sized,
    ),
    "inpaint": TaskWords(
        does="repaints a part of an image so that it fits a text and the rest of the image",
        use="with a part repainted, from prompts worded like its captions",
        prompts=OBJECTS,
        tags=("inpainting",),
        imports=LOAD_IMAGE,
        load=lambda size: (
            _photo(size),
            f'mask = load_image("mask.png").resize({size})  # white where the photo is repainted',
        ),
        arguments=lambda size: {"image": "photo", "mask_image": "mask", **_sized(size)},
        finish=(
            "image = pipe.image_processor.apply_overlay(mask, photo, image)  # elsewhere, the photo's own pixels",
        ),
        options=("--image", "photo.png", "--mask", "mask.png"),
        sample_note="The grey part of the image on the left was repainted.",
    ),
    "edit": TaskWords(
        does="changes an image as an instruction says",
        use="changed by instructions worded like those that it was trained on",
        prompts=INSTRUCTIONS,
        tags=("image-editing", "instruct-pix2pix"),
        imports=LOAD_IMAGE,
        load=lambda size: (_photo(size),),
        arguments=lambda size: {"image": "photo", "image_guidance_scale": repr(EDIT_SCALE)},
        options=("--image", "photo.png"),
        sample_note="The image on the left was changed as said.",
    ),
    "upscale": TaskWords(
        does="enlarges an image",
        use="made from smaller ones",
        prompts=OBJECTS[:1],
        tags=("super-resolution", "upscaling"),
        imports=LOAD_IMAGE,
        load=lambda size: (_photo(size),),
        arguments=lambda size: {"image": "photo"},
        options=("--image", "photo.png"),
        sample_note="The image on the left was enlarged.",
    ),
}
"""By the name of the task."""


def words_for(task: str) -> TaskWords:
    """The words for a task; those for text-to-image if it has none of its own."""
    return WORDS.get(task, WORDS[TEXT_TO_IMAGE])
