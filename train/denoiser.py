"""Program: the denoiser, a cross-attention UNet trained on latents with the DDPM objective.

`python -m train.denoiser CONFIG key=value ...` or `ldm train CONFIG`. Rerun the same command to resume.
Training starts from scratch (`parts:` names a trained autoencoder and text encoder) or from a whole model (`base:`);
`trainable:` says which part of it is trained. The run's `pipeline/` is a stock diffusers folder, or an adapter.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ldm.data.batches import read_pixels
from ldm.errors import UserError
from ldm.models.adapters.folder import Base
from ldm.models.loading.model import ModelParts

from .data.denoiser_data import (
    image_evaluation,
    open_stream,
    read_samples,
    read_training_data,
    validation,
    warn_data,
)
from .data.latents import ImageReaders, latent_samples
from .data.read import check_image_size
from .loop.denoiser_loss import DenoiserLoss
from .loop.state import TrainState
from .plan.plan import make_plan
from .run.best import apply_best, best_passed
from .run.checkpoints import assign_weights, checkpoints, origin_of
from .run.denoiser_model import base_of_adapter, make_loss, make_parts, size_multiple
from .run.held_model import held_model_of
from .run.log import read_metrics
from .run.preview import write_preview
from .run.program import run_program
from .run.run import Run
from .run.trainable import apply_memory_settings, check_base, save_trained
from .settings.denoiser import DenoiserSettings


def train(settings: DenoiserSettings) -> None:
    """Train, then write `pipeline/` into the run directory."""
    run = Run(settings)
    loss, base = make_model(run, settings)
    data = (open_stream if settings.data.streaming else read_samples)(run, settings, loss)

    def preview(state: TrainState, path: Path) -> None:
        if loss.task.inputs.images and not data.preview.images:
            return  # a stream
        with state.average.applied():
            write_preview(
                loss.parts,
                loss.task,
                settings.preview_settings,
                data.preview,
                path,
                run.device,
                writes=run.main,
                on_step=run.on_preview_step,
            )

    state = run.train(  # the training loop
        loss,
        data.dataset,
        bucket_of=data.bucket_of,
        sample_ids=data.sample_ids,
        stream=data.stream,
        preview=preview,
        validate=data.validate,
        evaluate=data.evaluate,
        opened=data.opened,
    )
    if run.main:
        save_result(run, settings, loss, state, base)


def make_model(run: Run, settings: DenoiserSettings) -> tuple[DenoiserLoss, Base | None]:
    """The model with its loss, set up for the run's device, and the base of an adapter.

    Raises:
        UserError: a part is missing, or does not fit the settings.
    """
    check_base(settings, settings.base)
    parts = make_parts(settings)
    base = base_of_adapter(settings, parts)
    loss = make_loss(settings, parts)
    run.use_model(held_model_of(settings, loss))
    multiple = size_multiple(loss.parts)
    check_image_size(settings.data, multiple, f"choose a multiple of {multiple} for this model")
    apply_memory_settings(loss.parts, settings, run.device)
    return loss, base


def save_result(
    run: Run, settings: DenoiserSettings, loss: DenoiserLoss, state: TrainState, base: Base | None
) -> None:
    """Write the averaged weights, or the best ones, as `pipeline/`."""
    if settings.validation.keep_best:
        apply_best(run.run_dir, state.average, settings.validation.decider)
    elif passed := best_passed(read_metrics(run.run_dir)):
        run.warn(passed)
    newest = checkpoints(run.run_dir / "checkpoints")[-1:]
    made = origin_of(newest[0]) if newest else {}
    if settings.validation.keep_best:
        made.pop("checkpoint_hash", None)  # of other weights
    with state.average.applied():
        parts = plain_parts(run, settings, loss, state)
        save_trained(parts, run.run_dir / "pipeline", settings, base, provenance=made)
    print(f"trained: {run.run_dir / 'pipeline'}")


def plain_parts(run: Run, settings: DenoiserSettings, loss: DenoiserLoss, state: TrainState) -> ModelParts:
    """The model with its present weights, in modules that can be saved."""
    if not run.sharded:
        return loss.parts
    fresh = make_loss(settings)  # saving copies modules, and FSDP's cannot be copied
    assign_weights(fresh, state.average.live, run.run_dir)
    fresh.parts.scheduler_config = loss.parts.scheduler_config  # with what was measured on the data
    return fresh.parts


def plan(settings: DenoiserSettings) -> None:
    """Print what training would do and cost, measured. Only the image index is written.

    Raises:
        UserError: the settings or the data are wrong, or the data is a stream.
    """
    if settings.data.streaming:
        raise UserError(
            "--plan with data.streaming = true", "only data that is read before a run can be planned"
        )
    run = Run(settings, planning=True)
    loss, _ = make_model(run, settings)
    data = read_training_data(run, settings, loss)
    if run.main:
        warn_data(settings, data, loss.parts.text_encoder)
    if settings.validation.every:  # refused without held-out samples
        validation(run, settings, loss, data, ImageReaders("pixel_values", read_pixels(data.held_out)))
    if settings.validation.evaluate_every:  # likewise, and if it could not be measured
        image_evaluation(run, settings, loss, data)
    samples_of = partial(
        latent_samples, settings, loss.parts.autoencoder, data.train, inputs=loss.task.inputs
    )
    made = make_plan(run, settings, loss, data, samples_of)
    if run.main:
        print(made)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(DenoiserSettings, train, argv, plan)


if __name__ == "__main__":
    sys.exit(main())
