"""`ldm info`: what a model is, or how a picture was made."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import Pipeline


def info(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|PNG",
            help="A model (emoji, a folder, a .safetensors file, a training run's folder, a Hub id) or a PNG made by "
            "`ldm generate`.",
        ),
    ] = "emoji",
) -> None:
    """Say what a model consists of, or how a picture was made.

    Of a model: its parts and their sizes, prediction type, noise schedule, defaults, the schedulers that fit.
    Of a PNG made by `ldm generate`: the settings inside it.
    """
    is_file = Path(model).is_file() and not model.endswith(".safetensors")
    if model.lower().endswith(".png") or is_file:
        from ldm.pipeline.record import read_settings

        rows = _flat(read_settings(model))
    else:
        from ldm.pipeline.pipeline import load_pipeline

        rows = dict(_model_rows(load_pipeline(model, device="cpu")))
    width = max(map(len, rows), default=0) + 2
    typer.echo("\n".join(f"{key + ':':{width}}{value}" for key, value in rows.items()))


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`{"versions": {"torch": "2"}}` as `{"versions.torch": "2"}`, a row a value."""
    rows: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            rows |= {f"{key}.{inner}": inner_value for inner, inner_value in _flat(value).items()}
        else:
            rows[key] = value
    return rows


def _model_rows(pipeline: "Pipeline") -> Iterator[tuple[str, Any]]:
    from ldm.diffusion.schedulers import schedulers_for

    yield "model", pipeline.model_id
    yield "weights hash", pipeline.weights_hash
    if pipeline.folder:
        yield from _adapter(pipeline.folder)
        yield "size on disk", _megabytes(pipeline.folder)
    for name, network in _networks(pipeline).items():
        count = sum(parameter.numel() for parameter in network.parameters())
        yield name, f"{type(network).__name__}, {count:,} parameters"
    factor = pipeline.autoencoder.pixels_per_latent
    yield "latents", f"{pipeline.autoencoder.num_channels} channels, one for {factor} x {factor} pixels"
    yield "prompt", f"{pipeline.text_encoder.context_length} tokens, start and end included"
    config = pipeline.scheduler_config
    yield "prediction type", config.get("prediction_type", "epsilon")
    yield "noise schedule", _schedule(config)
    for key, value in pipeline.defaults.model_defaults().items():
        yield f"default {key}", value
    yield "schedulers", ", ".join(schedulers_for(config))


def _adapter(folder: Path) -> Iterator[tuple[str, Any]]:
    """What is added to which base, where the folder holds an adapter alone."""
    from ldm.models.adapters.folder import read_adapter
    from ldm.models.loading.folder import is_adapter

    if is_adapter(folder):
        adapter = read_adapter(folder)
        settings = ", ".join(f"{key} {value}" for key, value in adapter.settings.items() if value)
        yield adapter.kind, f"on {adapter.base} ({settings})"


def _networks(pipeline: "Pipeline") -> dict[str, Any]:
    """The diffusers and transformers networks inside."""
    return {
        "denoiser": pipeline.denoiser.unet,
        "autoencoder": pipeline.autoencoder.vae,
        "text encoder": pipeline.text_encoder.model,
    }


def _megabytes(folder: Path) -> str:
    paths = [folder] if folder.is_file() else folder.rglob("*")
    size_bytes = sum(path.stat().st_size for path in paths if path.is_file())
    return f"{size_bytes / 1e6:.1f} MB"


def _schedule(config: Mapping[str, Any]) -> str:
    """The betas of training in words."""
    zero_snr = ", rescaled to zero terminal SNR" if config.get("rescale_betas_zero_snr") else ""
    betas = f"betas {config.get('beta_start', 0.0001)} to {config.get('beta_end', 0.02)}"
    steps = config.get("num_train_timesteps", 1000)
    return f"{config.get('beta_schedule', 'linear')}, {betas}, {steps} training steps{zero_snr}"
