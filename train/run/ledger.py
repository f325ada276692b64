"""The ledger of a run: the loss of each of its samples at fixed noise, ranked. `ldm ledger` starts it.

Run as `python -m train.run.ledger RUN OUTPUT NUM_TIMESTEPS NUM_OTHERS [DROP_LIST]`.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm.data.captions import plain_caption
from ldm.data.duplicates import near_duplicates
from ldm.data.leave_out import first_id, write_drop_list
from ldm.data.prepare import BucketedSample
from ldm.errors import UserError
from ldm.evaluation.ledger_page import write_ledger_page
from ldm.evaluation.loss_ledger import Losses, drop_list, make_ledger, other_captions, summary
from ldm.io.files import manifest_fault, write_json
from ldm.io.messages import say_error
from ldm.io.progress import work_bar

from ..data.denoiser_data import read_training_data
from ..data.latents import image_readers, latent_samples
from ..denoiser import make_model
from ..loop.denoiser_loss import DenoiserLoss
from ..loop.sample_losses import sample_losses
from ..loop.validation import ValidationSamples
from ..settings.denoiser import DenoiserSettings
from .checkpoints import assign_weights, checkpoints, load_module_numbers, step_of
from .from_checkpoint import chosen_weights, settings_of_run
from .run import Run


def write_ledger(
    run_dir: Path, output: Path, num_timesteps: int, num_others: int, drop_file: Path | None = None
) -> None:
    """Measure every sample of a run with its newest checkpoint, and write `ledger.json` and `ledger.html`.

    If the run keeps earlier checkpoints, the oldest one says how far each loss has fallen.

    Raises:
        UserError: the run has no checkpoint, is of another program or a stream, or its data has changed.
    """
    settings = settings_of_run(run_dir)
    found = checkpoints(run_dir / "checkpoints")
    if not found:
        raise UserError(f"{run_dir} has no checkpoint", "train first")
    run = Run(settings, planning=True)
    loss, _ = make_model(run, settings)
    data = read_training_data(run, settings, loss)
    placed = [*data.train, *data.held_out]
    captions = [plain_caption(one.sample, settings.captions) for one in placed]
    measured = Ledger(run, settings, loss, placed, num_timesteps)
    use_weights(loss, found[0], settings)
    early = measured.losses(captions, "earlier checkpoint") if len(found) > 1 else None
    use_weights(loss, found[-1], settings)
    own = measured.losses(captions, "own captions")
    others = [
        measured.losses(other_captions(captions, number), f"other captions {number + 1} of {num_others}")
        for number in range(num_others)
    ]
    held_out = torch.tensor([False] * len(data.train) + [True] * len(data.held_out))
    losses = Losses(own, torch.stack(others), early, held_out)
    ids = [one.sample.sample_id for one in placed]
    groups = near_duplicates(hashes_without_repeats(placed, settings))
    entries = make_ledger(ids, captions, losses, groups)
    facts = {
        "run": str(run_dir),
        "step": step_of(found[-1]),
        "early_step": step_of(found[0]) if early is not None else None,
        "num_timesteps": num_timesteps,
        "num_other_captions": num_others,
        **summary(entries, losses),
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "ledger.json", {**facts, "samples": [each.to_dict() for each in entries]})
    images = {one.sample.sample_id: one.sample for one in placed}
    write_ledger_page(output / "ledger.html", facts, entries, images)
    if drop_file is not None:
        write_drop_list(drop_file, drop_list(entries))
    print(json.dumps(facts))


def hashes_without_repeats(placed: Sequence[BucketedSample], settings: DenoiserSettings) -> dict[str, int]:
    """The perceptual hash of each sample by its id, of repeats (`repeats: N`) only the first: they are meant."""
    repeated = any(source.repeats > 1 for source in settings.data.all_sources())
    hashes = {one.sample.sample_id: one.facts.perceptual_hash for one in placed}
    return {id_: each for id_, each in hashes.items() if not repeated or first_id(id_) == id_}


def use_weights(loss: DenoiserLoss, checkpoint: Path, settings: DenoiserSettings) -> None:
    """Give the loss the averaged weights of a checkpoint.

    Raises:
        UserError: the checkpoint is damaged.
    """
    if fault := manifest_fault(checkpoint):
        raise UserError(fault, "remove the checkpoint, or choose another run")
    assign_weights(loss, chosen_weights(checkpoint, settings.optim.average, "average"), checkpoint)
    load_module_numbers(loss, checkpoint)


class Ledger:
    """The samples of a run, measured with one set of captions after another and always the same noise."""

    def __init__(
        self,
        run: Run,
        settings: DenoiserSettings,
        loss: DenoiserLoss,
        placed: Sequence[BucketedSample],
        num_timesteps: int,
    ) -> None:
        self.run, self.settings, self.loss, self.placed = run, settings, loss, placed
        self.num_timesteps = num_timesteps
        readers = image_readers(run, placed, loss.parts.autoencoder, settings)
        self.dataset = latent_samples(settings, loss.parts.autoencoder, placed, readers, loss.task.inputs)
        loss.parts.denoiser.to(run.device)
        loss.parts.text_encoder.to(run.device)

    def losses(self, captions: Sequence[str], what: str) -> Tensor:
        """[N, K]: the loss of each sample with the caption given for it."""
        samples = ValidationSamples(
            self.dataset,
            captions,
            num_timesteps_per_sample=self.num_timesteps,
            buckets=[one.size for one in self.placed],
        )
        with work_bar("sample") as bar:
            bar.say(what)
            show: Callable[[int], None] = lambda done: bar.show(done, len(captions))  # noqa: E731
            return sample_losses(
                self.loss,
                samples,
                batch_size=self.settings.validation.batch_size,
                device=self.run.device,
                autocast=self.run.accelerator.autocast,
                on_progress=show,
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Write the ledger; returns the exit code."""
    run_dir, output, num_timesteps, num_others, *drop = sys.argv[1:] if argv is None else argv
    try:
        drop_file = Path(drop[0]) if drop else None
        write_ledger(Path(run_dir), Path(output), int(num_timesteps), int(num_others), drop_file)
    except UserError as error:
        say_error(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
