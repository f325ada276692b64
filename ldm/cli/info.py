"""`ldm info`: what a model is, or how an image was made."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm.cli.printer import Printer, reporting
from ldm.io.messages import visible

if TYPE_CHECKING:
    from ldm.diffusion.path import ProbabilityPath
    from ldm.pipeline.pipeline import Pipeline


@reporting
def info(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|IMAGE",
            help="A model (emoji, a folder, a .safetensors file, a training run's folder, a Hub id) or an image made "
            "by `ldm generate`.",
        ),
    ] = "emoji",
    tensors: Annotated[
        bool,
        typer.Option(
            "--tensors",
            help="List the tensors of any safetensors file, or of those in any folder: name, type and shape.",
        ),
    ] = False,
    *,
    printer: Printer,
) -> None:
    """Describe a model, or say how an image was made.

    For a model: its networks and their sizes, prediction type, noise schedule, defaults and compatible schedulers. For
    an image made by `ldm generate`: the settings stored in it. --tensors needs no model: a LoRA or any other file will
    do.
    """
    if tensors:
        from ldm.cli.info_tensors import describe_tensors, tensor_lines

        listed = describe_tensors(model)
        return printer.result(listed, *map(visible, tensor_lines(listed)))
    is_file = Path(model).is_file() and not model.endswith(".safetensors")
    if model.lower().endswith(".png") or is_file:
        from ldm.pipeline.record import read_settings

        facts: Mapping[str, Any] = read_settings(model)
        rows = _flat(facts)
    else:
        from ldm.pipeline.pipeline import load_pipeline

        facts = describe_model(load_pipeline(model, device="cpu"))
        rows = dict(_model_rows(facts))
    lines = {visible(key): visible(str(value)) for key, value in rows.items()}
    width = max(map(len, lines), default=0) + 2
    printer.result(facts, *(f"{key + ':':{width}}{value}" for key, value in lines.items()))


def describe_model(pipeline: "Pipeline") -> dict[str, Any]:
    """What `ldm info` says about a model, ready for JSON."""
    from ldm.diffusion.paths import path_of_config, prediction_type_of
    from ldm.diffusion.schedulers import schedulers_for

    folder, config = pipeline.folder, pipeline.scheduler_config
    path = path_of_config(config)
    return {
        "model": pipeline.model_id,
        "weights_hash": pipeline.weights_hash,
        "task": pipeline.parts.task,
        "adapter": _adapter(folder) if folder else None,
        "size_bytes": _size_bytes(folder) if folder else None,
        "networks": {
            name: {
                "class": type(network).__name__,
                "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
            }
            for name, network in _networks(pipeline).items()
        },
        "num_latent_channels": pipeline.autoencoder.num_channels,
        "pixels_per_latent": pipeline.autoencoder.pixels_per_latent,
        "context_length": pipeline.text_encoder.context_length,
        "prediction_type": prediction_type_of(config),
        "noise_schedule": _levels(path) if path else _betas(config),
        "defaults": pipeline.defaults.model_defaults(),
        "schedulers": list(schedulers_for(config)),
    }


def _levels(path: "ProbabilityPath") -> dict[str, Any]:
    """What a saved model says about a path other than DDPM's."""
    saved = path.scheduler_settings(path.scheduler_config()["_class_name"]) or path.settings.model_dump()
    return {"path": path.name, **{key: value for key, value in saved.items() if key != "prediction_type"}}


def _betas(config: Mapping[str, Any]) -> dict[str, Any]:
    """DDPM's noise schedule."""
    return {
        "beta_schedule": config.get("beta_schedule", "linear"),
        "beta_start": config.get("beta_start", 0.0001),
        "beta_end": config.get("beta_end", 0.02),
        "num_train_timesteps": config.get("num_train_timesteps", 1000),
        "rescale_betas_zero_snr": bool(config.get("rescale_betas_zero_snr")),
    }


def _adapter(folder: Path) -> dict[str, Any] | None:
    """The kind, base and settings of an adapter, or None if the folder contains a whole model."""
    from ldm.models.adapters.folder import read_adapter
    from ldm.models.loading.folder import is_adapter

    if not is_adapter(folder):
        return None
    adapter = read_adapter(folder)
    return {"kind": adapter.kind, "base": str(adapter.base), "settings": dict(adapter.settings)}


def _networks(pipeline: "Pipeline") -> dict[str, Any]:
    """The model's diffusers and transformers networks."""
    text_models = [encoder.model for encoder in pipeline.text_encoder.encoders]
    return {
        "denoiser": pipeline.denoiser.unet,
        "autoencoder": pipeline.autoencoder.vae,
        **dict(zip(("text encoder", "second text encoder"), text_models, strict=False)),
    }


def _size_bytes(folder: Path) -> int:
    paths = [folder] if folder.is_file() else folder.rglob("*")
    return sum(path.stat().st_size for path in paths if path.is_file())


def _model_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The rows of text for `describe_model`."""
    yield "model", facts["model"]
    yield "weights hash", facts["weights_hash"]
    yield "task", facts["task"]
    if adapter := facts["adapter"]:
        told = {
            key: value for key, value in adapter["settings"].items() if value and value != adapter["kind"]
        }
        settings = ", ".join(f"{key} {value}" for key, value in told.items())
        yield adapter["kind"], f"on {adapter['base']} ({settings})"
    if facts["size_bytes"] is not None:
        yield "size on disk", f"{facts['size_bytes'] / 1e6:.1f} MB"
    for name, network in facts["networks"].items():
        yield name, f"{network['class']}, {network['num_parameters']:,} parameters"
    side = facts["pixels_per_latent"]
    yield "latents", f"{facts['num_latent_channels']} channels, each latent covers {side} x {side} pixels"
    yield "prompt", f"{facts['context_length']} tokens, including start and end"
    yield "prediction type", facts["prediction_type"]
    yield "noise schedule", _schedule(facts["noise_schedule"])
    for key, value in facts["defaults"].items():
        yield f"default {key}", value
    yield "schedulers", ", ".join(facts["schedulers"])


def _schedule(schedule: Mapping[str, Any]) -> str:
    """The noise schedule of training in words."""
    if "path" in schedule:
        return ", ".join(f"{key} {value}" for key, value in schedule.items())
    zero_snr = ", rescaled to zero terminal SNR" if schedule["rescale_betas_zero_snr"] else ""
    betas = f"betas {schedule['beta_start']} to {schedule['beta_end']}"
    steps = schedule["num_train_timesteps"]
    return f"{schedule['beta_schedule']}, {betas}, {steps} training steps{zero_snr}"


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`{"versions": {"torch": "2"}}` as `{"versions.torch": "2"}`."""
    rows: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            rows |= {f"{key}.{inner}": inner_value for inner, inner_value in _flat(value).items()}
        else:
            rows[key] = value
    return rows
