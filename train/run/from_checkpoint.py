"""The model of a checkpoint, as the run would write it if it ended there: `ldm export` reads checkpoints this way.

Run as `python -m train.run.from_checkpoint CHECKPOINT DEST WEIGHTS`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ldm.config import load_settings, read_yaml
from ldm.diffusion.ema import split_name
from ldm.errors import UserError, unknown_name
from ldm.io.files import manifest_fault, read_tensors
from ldm.io.messages import say_error

from ..loop.averages import AverageSettings
from ..settings.denoiser import DenoiserSettings
from .checkpoints import assign_weights, load_module_numbers, origin_of, step_of
from .denoiser_model import base_of_adapter, make_loss, make_parts
from .held_model import check_model_of, held_model_of
from .trainable import save_trained


def write_model(checkpoint: Path, dest: Path, weights: str = "average") -> None:
    """Write the model of a checkpoint into the folder `dest`.

    Args:
        weights: "average", which the run's result uses; "trained"; or one of `optim.average.widths`.

    Raises:
        UserError: the checkpoint is damaged or of another program, the run has no such average, or the model it was
            trained with has changed.
    """
    if fault := manifest_fault(checkpoint):
        raise UserError(fault, "choose another checkpoint of the run")
    config = checkpoint.parents[1] / "config.yaml"
    if (program := read_yaml(config).get("program")) != "denoiser":
        raise UserError(
            f"{config} is a configuration of the program {program}", "name a run of the program denoiser"
        )
    settings = load_settings(DenoiserSettings, config)
    chosen = chosen_weights(checkpoint, settings.optim.average, weights)
    parts = make_parts(settings)
    base = base_of_adapter(settings, parts)
    loss = make_loss(settings, parts)
    check_model_of(checkpoint, held_model_of(settings, loss))
    assign_weights(loss, chosen, checkpoint)
    load_module_numbers(loss, checkpoint)
    made = {"step": step_of(checkpoint), "weights": weights, **origin_of(checkpoint)}
    save_trained(loss.parts, dest, settings, base, provenance=made)


def settings_of_run(run_dir: Path) -> DenoiserSettings:
    """The settings of a finished or interrupted run, wherever its directory is now.

    Raises:
        UserError: it is not a run of the program denoiser, or it trained on a stream.
    """
    config = run_dir / "config.yaml"
    if not config.is_file():
        raise UserError(f"{run_dir} is not a run", "name the run_dir of a training run")
    if (program := read_yaml(config).get("program")) != "denoiser":
        raise UserError(f"{run_dir} is a run of the program {program}", "name a run of the program denoiser")
    settings = load_settings(DenoiserSettings, config)
    if settings.data.streaming:
        raise UserError(f"{run_dir} trained on a stream", "this needs data that is read before the run")
    return settings.model_copy(update={"run_dir": run_dir})


def chosen_weights(checkpoint: Path, average: AverageSettings, weights: str) -> dict[str, Tensor]:
    """The requested tensors of a checkpoint, by the weights' names.

    Raises:
        UserError: the run has no such average.
    """
    if weights == "trained":
        return read_tensors(checkpoint / "weights.safetensors")
    stored = read_tensors(checkpoint / "average.safetensors")
    known = {f"{width:g}": width for width in average.widths}
    if weights == "average" and not known:
        return stored
    if weights not in ("average", *known):
        raise unknown_name(f"average in {checkpoint}", weights, ("average", "trained", *known))
    width = known.get(weights, average.applied_width or next(iter(average.widths), None))
    named = ((split_name(name), tensor) for name, tensor in stored.items())
    return {name: tensor for (of, name), tensor in named if of == width}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the model; returns the exit code."""
    checkpoint, dest, weights = sys.argv[1:] if argv is None else argv
    try:
        write_model(Path(checkpoint), Path(dest), weights)
    except UserError as error:
        say_error(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
