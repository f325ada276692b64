"""OpenLDM: latent diffusion text-to-image with numbers you can trust.

    from ldm import load_pipeline
    load_pipeline("emoji").generate("a red apple", seed=7).save("outputs")

The names below are imported on first use, so that `import ldm` is fast.
"""

from typing import TYPE_CHECKING, Any

from ldm.errors import UserError
from ldm.version import __version__

if TYPE_CHECKING:
    from ldm.models.generation_settings import GenerationSettings
    from ldm.pipeline.pipeline import Generation, LdmWarning, Pipeline, load_pipeline
    from ldm.pipeline.record import ImageRecord

__all__ = [
    "Generation",
    "GenerationSettings",
    "ImageRecord",
    "LdmWarning",
    "Pipeline",
    "UserError",
    "__version__",
    "load_pipeline",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from ldm.pipeline import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'ldm' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, which completion shows; the rest is in the modules."""
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING", "Any"})
