"""Large images in overlapping windows: the settings for it, and the windows that they give.

Axis letters: h w latent size.
"""

from ldm.diffusion.windows import Window, list_windows
from ldm.errors import UserError
from ldm.models.generation_settings import GenerationSettings


def complete_windows(
    settings: GenerationSettings, given: GenerationSettings, defaults: GenerationSettings, multiple: int
) -> GenerationSettings:
    """The settings with a window and an overlap where they are left open.

    Args:
        settings: complete but for these two.
        given: what is not left open.
        defaults: the model's own, whose size is that of a window.
        multiple: pixels per latent.

    Raises:
        UserError: a window is smaller than a latent, or no larger than its overlap.
    """
    chosen = given.given()
    own, longest = max(defaults.height, defaults.width), max(settings.height, settings.width)
    side = chosen.get("tile_size", own if longest > own else 0)
    overlap = chosen.get("tile_overlap", side // 4)
    if 0 < side < multiple:
        raise UserError(
            f"tile_size is {side}", f"it must be 0 or at least {multiple}, the pixels of a latent"
        )
    if 0 < side <= overlap:
        said = f"tile_size is {side} and tile_overlap {overlap}"
        raise UserError(said, "make the windows larger than their overlap")
    return settings.model_copy(update={"tile_size": side, "tile_overlap": overlap})


def windows_of(height: int, width: int, settings: GenerationSettings, multiple: int) -> list[Window]:
    """The windows for latents of h x w; a single one if the image is made in one piece.

    Args:
        settings: from `complete_windows`, or of a task without windows.
    """
    if not settings.tile_size:
        return [Window(0, 0, height, width)]
    side = settings.tile_size // multiple
    overlap = min(-(-settings.tile_overlap // multiple), side - 1)
    return list_windows(height, width, side, overlap)
