"""What a model is told of the size of an image, beside the prompt and beside the negative prompt."""

from dataclasses import replace

from ldm.models.families.family import SizeConditions
from ldm.models.generation_settings import GenerationSettings
from ldm.models.setting_limits import AS_POSITIVE, UNTOLD


def told_sizes(settings: GenerationSettings) -> tuple[SizeConditions, SizeConditions]:
    """The sizes beside the prompt and beside the negative prompt; what is left open there is as beside the prompt.

    Args:
        settings: none of them left open.
    """
    size = settings.height, settings.width
    sizes = SizeConditions(
        settings.original_size if settings.original_size != UNTOLD else size,
        settings.crop,
        settings.target_size if settings.target_size != UNTOLD else size,
        settings.aesthetic_score,
    )
    negative = replace(sizes, aesthetic_score=settings.negative_aesthetic_score)
    if settings.negative_original_size != UNTOLD:
        negative = replace(negative, original=settings.negative_original_size)
    if settings.negative_crop != AS_POSITIVE:
        negative = replace(negative, crop=settings.negative_crop)
    if settings.negative_target_size != UNTOLD:
        negative = replace(negative, target=settings.negative_target_size)
    return sizes, negative
