"""The model and LoRAs that images are made with; to reproduce an image they must be the original's."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.errors import UserError, warn
from ldm.generation.reproduce import GivenLora, Original, weigh_loras
from ldm.models.adapters.fuse import lora_hash, split_weight
from ldm.models.control.hints import split_kind

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import Pipeline

BATCH_SIZE, GPU_BATCH_SIZE = 8, 64


@dataclass(frozen=True)
class ModelOptions:
    """What images are made with; None is left to the original that is reproduced, or to the defaults.

    Attributes:
        loras: each `FILE` or `FILE:WEIGHT`.
        controlnets: each `KIND=PLACE`.
        ip_adapters: files or folders.
        embeddings: each `FILE` or `FILE=<token>`.
        vae: with `base`, `prediction_type`, `guide_model` and `refiner`, as of `ldm.pipeline.pipeline.load_pipeline`.
    """

    model: str | None = None
    loras: tuple[str, ...] = ()
    engine: str | None = None
    device: str | None = None
    dtype: str | None = None
    low_memory: bool = False
    batch_size: int = BATCH_SIZE
    compile: bool = False
    vae: str | None = None
    base: str | None = None
    prediction_type: str | None = None
    controlnets: tuple[str, ...] = ()
    ip_adapters: tuple[str, ...] = ()
    image_encoder: str | None = None
    guide_model: str | None = None
    refiner: str | None = None
    embeddings: tuple[str, ...] = ()


def read_batch_size(given: str | None, *, low_memory: bool = False, device: str | None = None) -> int:
    """Images made at once, from what the user wrote: a number, `auto`, or nothing.

    `auto` starts with a large batch on a GPU, which `Pipeline.make_images` halves until it fits. A CPU gains nothing
    from large batches.

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


def load_model(options: ModelOptions, original: Original | None) -> "Pipeline":
    """The model, which must be the original's unless another was named. Its engine is torch.

    Raises:
        UserError: a model or LoRA does not exist, or has other weights than the original's.

    Warns:
        LdmWarning: the model or LoRA was named, and is not the original's.
    """
    from ldm.models.devices import keep_freed_memory
    from ldm.pipeline.pipeline import load_pipeline

    model = options.model
    if model is None:
        model = original.model() if original else "emoji"
    dtype = options.dtype or (original.record.dtype if original else None)
    pipeline = load_pipeline(
        model,
        loras=_loras(options, original),
        device=options.device,
        dtype=dtype,
        vae=options.vae,
        base=options.base,
        prediction_type=options.prediction_type,
        controlnets=_controlnets(options),
        ip_adapters=options.ip_adapters,
        image_encoder=options.image_encoder,
        guide_model=options.guide_model,
        refiner=options.refiner,
        embeddings=options.embeddings,
    )
    pipeline.low_memory = options.low_memory
    if pipeline.device.type == "cpu" and not options.low_memory:
        keep_freed_memory()
    if original:
        _check_second_models(original, pipeline)
        _check_embeddings(original, pipeline)
        _check_model(original, pipeline, named=options.model is not None)
        if fault := original.other_networks(pipeline.parts):  # always named by the user
            _warn_of_difference(fault)
    return pipeline


def _controlnets(options: ModelOptions) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in options.controlnets:
        kind, place = split_kind(text, "--controlnet canny=PLACE")
        if kind in found:
            raise UserError(f"two networks for control images of kind {kind}", "give one of each kind")
        found[kind] = place
    return found


def _loras(options: ModelOptions, original: Original | None) -> list[tuple[Path, float]]:
    """The given LoRAs, which must be the original's unless others are named."""
    named = [split_weight(text) for text in options.loras]
    given = [GivenLora(path, lora_hash(path), weight) for path, weight in named]
    fault = original.missing_loras(given) if original else ""
    if fault and not given:
        raise UserError(fault, "say where it is with --lora FILE")
    if fault:
        _warn_of_difference(fault)
    return weigh_loras(original, given)


def _check_model(original: Original, pipeline: "Pipeline", *, named: bool) -> None:
    """Another model makes another image: an error, or a warning if the user named the model."""
    fault = original.mismatch(pipeline.identity)
    if fault and not named:
        raise UserError(fault, "name the model that made it with --model")
    if fault:
        _warn_of_difference(fault)


def _check_second_models(original: Original, pipeline: "Pipeline") -> None:
    """An image that a second model guided or refined needs that model again."""
    for what, recorded, here in (
        ("guide model", original.record.guide_hash, pipeline.guide_model),
        ("refiner", original.record.refiner_hash, pipeline.refiner),
    ):
        if recorded is None or (here is not None and here.weights_hash == recorded):
            continue
        if here is None:
            said = f"{original.path} was made with a {what} (hash {recorded[:10]})"
            raise UserError(said, f"say where it is with --{what.replace(' ', '-')}")
        hashes = f"hash {recorded[:10]}, here {here.weights_hash[:10]}"
        _warn_of_difference(f"{original.path} was made with another {what} ({hashes})")
    if pipeline.refiner and original.record.refiner_hash is None:
        _warn_of_difference(f"{original.path} was made without a refiner")


def _check_embeddings(original: Original, pipeline: "Pipeline") -> None:
    """An image whose model had more tokens needs them again; further ones change nothing."""
    here = {each.token: each.sha256 for each in pipeline.embeddings}
    for used in original.record.embeddings:
        said = f"{original.path} was made with the embedding {used.token} (hash {used.sha256[:10]})"
        if used.token not in here:
            raise UserError(said, f"say where it is with --embedding FILE={used.token}")
        if here[used.token] != used.sha256:
            _warn_of_difference(f"{said}, here it is {here[used.token][:10]}")


def _warn_of_difference(fault: str) -> None:
    warn(f"{fault}, so the image will be different")
