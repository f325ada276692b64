"""From prompts to pictures. The names below are imported on first use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import (
        DTYPES,
        Generation,
        LdmWarning,
        OnStep,
        Pipeline,
        load_pipeline,
        pick_device,
    )

__all__ = ["DTYPES", "Generation", "LdmWarning", "OnStep", "Pipeline", "load_pipeline", "pick_device"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from ldm.pipeline import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'ldm.pipeline' has no attribute {name!r}")
