"""What the denoiser will do for some images, and so which engine pays and what to compile."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from ldm.errors import UserError
from ldm.models.engines.compiled import compile_denoiser
from ldm.models.generation_settings import GenerationSettings
from ldm.pipeline.batches import Batch
from ldm.pipeline.engine_choice import Work, choose_engine

if TYPE_CHECKING:
    from ldm.models.engines.openvino_denoiser import OpenVINODenoiser
    from ldm.pipeline.pipeline import Pipeline


def work_of(pipeline: "Pipeline", images: Batch) -> Work:
    """The denoiser's work for some images, as if all had the size of the first."""
    settings = [pipeline.sized(image.kind).over(pipeline.defaults) for image in images]
    sides = (settings[0].height, settings[0].width)
    height, width = (max(1, side // pipeline.autoencoder.pixels_per_latent) for side in sides)
    reuses = any(each.deep_features_every > 1 for each in settings)
    if pipeline.denoiser.embeds_guidance:
        settings = [each.model_copy(update={"guidance_scale": 1.0}) for each in settings]
    num_rows = round(sum(map(_num_rows, settings)))
    return Work(num_rows, height, width, pipeline.text_encoder.context_length, reuses)


def _num_rows(settings: GenerationSettings) -> float:
    """Full rows that the denoiser computes for an image; an interval of noise levels counts as all steps."""
    start, end = settings.guidance_interval
    guided = (end - start if start < end else 1.0) if settings.guidance_scale > 1 else 0.0
    return settings.num_inference_steps * (1 + guided) / settings.deep_features_every


def choose_engine_together(
    name: str, pipeline: "Pipeline", images: Batch, folder: Path | None
) -> "OpenVINODenoiser | None":
    """The engine for some images; of several processes the first converts the network and decides for all.

    Args:
        name: as the user named it; `auto` is decided by the work of all processes together, so that the decision does
            not depend on how many there are.
        images: of all processes together.
        folder: where the processes leave each other the decision; None for a process that is alone.
    """
    work = work_of(pipeline, images)
    if name == "auto" and any(image.settings.guidance == "pag" for image in images):
        name = "torch"  # its attention is changed while it runs
    if folder is None or name == "torch":
        return choose_engine(name, pipeline.denoiser, work)
    decision = folder / "engine"
    with FileLock(folder / "engine.lock"):
        decided = decision.read_text() if decision.exists() else ""
        engine = choose_engine(decided or name, pipeline.denoiser, work)
        decision.write_text(decided or (engine.name if engine else "torch"))
    return engine


def compile_for(pipeline: "Pipeline", batches: Sequence[Batch]) -> None:
    """Compile the denoiser of a pipeline, and call it once at the size of the first batch.

    Other sizes are compiled when they occur: a last batch with fewer images, steps without guidance.

    Raises:
        UserError: torch cannot compile it here, or these images call something else than the denoiser itself.
    """
    work = work_of(pipeline, [image for batch in batches for image in batch])
    if pipeline.engine is not None:
        raise UserError(f"compile does not work with the engine {pipeline.engine.name}", "remove one of them")
    if work.reuses_features:
        raise UserError(
            "compile does not work with deep features that are reused", "remove --preset or --compile"
        )
    if pipeline.low_memory:
        raise UserError("compile does not work with low memory", "remove one of them")
    first = batches[0]
    scale = first[0].settings.over(pipeline.defaults).guidance_scale
    num_rows = len(first) * (2 if scale > 1 and not pipeline.denoiser.embeds_guidance else 1)
    compile_denoiser(pipeline.denoiser, num_rows, work.height, work.width, work.num_tokens)
