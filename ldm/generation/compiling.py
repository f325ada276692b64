"""The denoiser compiled for the pictures that are to be made, or an error that says why not."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ldm.errors import UserError
from ldm.generation.batches import PictureBatch, work_of
from ldm.models.engines.compiled import compile_denoiser

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import Pipeline


def compile_for(pipeline: "Pipeline", batches: Sequence[PictureBatch]) -> None:
    """Compile the denoiser of a pipeline, and call it once at the size of the first batch.

    Other sizes are compiled when they come: a last batch with fewer pictures, steps without guidance.

    Raises:
        UserError: torch cannot compile it here, or the denoiser is not what is called for these pictures.
    """
    work = work_of(pipeline, [picture for batch in batches for picture in batch.pictures])
    if pipeline.engine is not None:
        raise UserError("compile goes with the engine torch alone", "leave one of them out")
    if work.reuses_features:
        raise UserError("compile does not go with deep features used again", "leave preset or compile out")
    if pipeline.low_memory:
        raise UserError("compile does not go with low memory", "leave one of them out")
    first = batches[0]
    scale = first.settings.get("guidance_scale", pipeline.defaults.guidance_scale)
    num_rows = len(first.pictures) * (2 if scale > 1 else 1)
    compile_denoiser(pipeline.denoiser, num_rows, work.height, work.width, work.num_tokens)
