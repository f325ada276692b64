"""What pictures are made with: a model and LoRAs, which must be those of the picture that is made again."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.errors import UserError, warn
from ldm.generation.reproduce import GivenLora, Recipe, weigh_loras
from ldm.models.adapters.fuse import lora_hash, split_weight

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import Pipeline

BATCH_SIZE, GPU_BATCH_SIZE = 8, 64


@dataclass(frozen=True)
class ModelOptions:
    """What the pictures are made with; None is left to the recipe, or to the defaults.

    Attributes:
        loras: each `FILE` or `FILE:WEIGHT`.
    """

    model: str | None = None
    loras: tuple[str, ...] = ()
    engine: str | None = None
    device: str | None = None
    dtype: str | None = None
    low_memory: bool = False
    batch_size: int = BATCH_SIZE
    compile: bool = False


def read_batch_size(given: str | None, *, low_memory: bool = False, device: str | None = None) -> int:
    """Pictures made at once, from what the user wrote: a number, `auto`, or nothing.

    With `auto` a GPU is given many, and `make_batches` takes fewer where they do not fit. A CPU gains nothing by it.

    Raises:
        UserError: it is neither.
    """
    if given is None:
        return 1 if low_memory else BATCH_SIZE
    if given == "auto":
        from ldm.models.devices import pick_device

        return GPU_BATCH_SIZE if pick_device(device).type == "cuda" else BATCH_SIZE
    if not given.isascii() or not given.isdigit() or int(given) < 1:
        raise UserError(f"batch size {given!r}", "it must be auto or a whole number of at least 1")
    return int(given)


def load_model(means: ModelOptions, recipe: Recipe | None) -> "Pipeline":
    """The model, which must be the one that made the picture unless another was named. Its engine is torch.

    Raises:
        UserError: there is no such model or LoRA, or it has other weights than the recipe says.

    Warns:
        LdmWarning: the model or LoRA was named, and is not the picture's.
    """
    from ldm.models.devices import keep_freed_memory
    from ldm.pipeline.pipeline import load_pipeline

    model = means.model
    if model is None:
        model = recipe.model() if recipe else "emoji"
    dtype = means.dtype or (recipe.dtype if recipe else None)
    pipeline = load_pipeline(model, loras=_loras(means, recipe), device=means.device, dtype=dtype)
    pipeline.low_memory = means.low_memory
    if pipeline.device.type == "cpu" and not means.low_memory:
        keep_freed_memory()
    if recipe:
        _check_weights(recipe, pipeline.weights_hash, named=means.model is not None)
    return pipeline


def _loras(means: ModelOptions, recipe: Recipe | None) -> list[tuple[Path, float]]:
    """The LoRAs that are given, which must be those of the recipe unless others are named."""
    named = [split_weight(text) for text in means.loras]
    given = [GivenLora(path, lora_hash(path), weight) for path, weight in named]
    fault = recipe.missing_loras(given) if recipe else ""
    if fault and not given:
        raise UserError(fault, "say where it lies with --lora FILE")
    if fault:
        _warn_of_another_picture(fault)
    return weigh_loras(recipe, given)


def _check_weights(recipe: Recipe, weights_hash: str | None, *, named: bool) -> None:
    """Other weights make another picture: an error, or a warning where the user named the model."""
    fault = recipe.mismatch(weights_hash)
    if fault and not named:
        raise UserError(fault, "name the model that made it with --model")
    if fault:
        _warn_of_another_picture(fault)


def _warn_of_another_picture(fault: str) -> None:
    warn(f"{fault}, so the picture will be another one")
