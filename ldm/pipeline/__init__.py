"""From prompts to images. The names below are imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.models.generation_settings import GenerationSettings
    from ldm.pipeline.pipeline import (
        DTYPES,
        Generation,
        LdmWarning,
        OnStep,
        Pipeline,
        load_pipeline,
        pick_device,
    )
    from ldm.pipeline.record import ImageRecord

__all__ = [
    "DTYPES",
    "Generation",
    "GenerationSettings",
    "ImageRecord",
    "LdmWarning",
    "OnStep",
    "Pipeline",
    "load_pipeline",
    "pick_device",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("ldm.pipeline.pipeline"), name)
    raise AttributeError(f"module 'ldm.pipeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, which completion shows."""
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING", "Any", "import_module"})
