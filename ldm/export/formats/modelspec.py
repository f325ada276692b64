"""The metadata of a safetensors header after ModelSpec 1.0.1."""

import base64
import io
from collections.abc import Sequence

from PIL import Image

THUMBNAIL_PX = 256

ORIGINAL_LAYOUT = "https://github.com/Stability-AI/generative-models"
"""ModelSpec's name for the original layout; the other one in use is "diffusers"."""


def modelspec_fields(
    *,
    architecture: str,
    implementation: str,
    title: str,
    resolution: tuple[int, int],
    prediction_type: str,
    licence: str | None = None,
    description: str | None = None,
    author: str | None = None,
    date: str | None = None,
    tags: Sequence[str] = (),
    thumbnail: Image.Image | None = None,
) -> dict[str, str]:
    """The header's fields; those that are None are left out.

    Args:
        architecture: such as "stable-diffusion-v1", or "stable-diffusion-v1/lora" for an adapter.
        implementation: the layout of the tensors' names: `ORIGINAL_LAYOUT` or "diffusers".
        resolution: width and height in pixels.
        prediction_type: diffusers' name, "epsilon" or "v_prediction".
        date: ISO 8601.
        thumbnail: an image that the model made; it is stored small.
    """
    given = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture,
        "implementation": implementation,
        "title": title,
        "resolution": "x".join(str(side) for side in resolution),
        "prediction_type": "v" if prediction_type == "v_prediction" else prediction_type,
        "license": licence,
        "description": description,
        "author": author,
        "date": date,
        "tags": ", ".join(tags) or None,
        "thumbnail": None if thumbnail is None else _data_uri(thumbnail),
    }
    return {f"modelspec.{key}": value for key, value in given.items() if value is not None}


def _data_uri(image: Image.Image) -> str:
    """An image as text, at most 256 pixels a side and without metadata."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    small.info.clear()
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
