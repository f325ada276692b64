"""What a safetensors file says of itself in its header: ModelSpec 1.0.1."""

import base64
import io
from collections.abc import Sequence

from PIL import Image

THUMBNAIL_PX = 256

ORIGINAL_LAYOUT = "https://github.com/Stability-AI/generative-models"
"""How ModelSpec names the layout of the original programs; the other one in use is "diffusers"."""


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
    """The header's fields; what is None is left out.

    Args:
        architecture: such as "stable-diffusion-v1", of an adapter "stable-diffusion-v1/lora".
        implementation: whose layout the tensors' names have: `ORIGINAL_LAYOUT` or "diffusers".
        resolution: width and height in pixels.
        prediction_type: as diffusers names it, "epsilon" or "v_prediction".
        date: ISO 8601.
        thumbnail: a picture that the model made; it is stored small.
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
    """A picture as text, at most 256 pixels a side; nothing but the pixels goes in."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    small.info.clear()
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
