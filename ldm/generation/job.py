"""What a call of `ldm generate` is to do, and the share of it that one process does.

The images are divided into batches before the work is shared, and a process's share follows from its rank alone. No
process waits for another, and the files are the same for any number of processes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import TypeAdapter

from ldm.errors import UserError
from ldm.generation.finished import finished_images
from ldm.generation.model_options import ModelOptions, load_model
from ldm.generation.output import Target
from ldm.generation.reproduce import Original
from ldm.generation.safety_check import checked, refusal
from ldm.generation.signing import image_file
from ldm.generation.work import choose_engine_together, compile_for
from ldm.io.files import write_bytes, write_new
from ldm.pipeline.batches import Batch, ImageRequest, plan_batches

OnProgress = Callable[[int, int], None]
"""Called after every sampling step with (steps done, steps in all), counted over all batches."""

_JOB = "job.json"


@dataclass(frozen=True)
class GenerationJob:
    """What is to be done, down to each image.

    Attributes:
        original: the image that is reproduced, or None.
    """

    images: tuple[ImageRequest, ...]
    target: Target
    model_options: ModelOptions
    original: Original | None = None

    @property
    def batches(self) -> list[Batch]:
        return plan_batches(self.images, self.model_options.batch_size)

    @property
    def engine(self) -> str:
        return self.model_options.engine or (self.original.record.engine if self.original else "torch")

    @property
    def engine_here(self) -> str:
        """The engine, where `auto` is torch for images that only torch makes."""
        controlled = any(image.controls for image in self.images)
        return "torch" if self.engine == "auto" and controlled else self.engine

    def write(self, folder: Path) -> None:
        """Write it down for other processes, which read neither the prompt file nor standard input again."""
        text = TypeAdapter(GenerationJob).dump_json(self, exclude_unset=True)  # settings left open stay so
        write_bytes(folder / _JOB, text)


def read_job(folder: Path) -> GenerationJob:
    """The job that `GenerationJob.write` put into a folder."""
    return TypeAdapter(GenerationJob).validate_json((folder / _JOB).read_bytes())


@dataclass(frozen=True)
class Share:
    """The part of the work that one process does.

    Attributes:
        rank: of the process, from 0.
        folder: where the processes leave each other messages; None for a process that is alone.
    """

    rank: int = 0
    num_processes: int = 1
    folder: Path | None = None

    def of(self, batches: Sequence[Batch]) -> list[Batch]:
        """Every `num_processes`-th batch, starting with that of the rank."""
        return list(batches[self.rank :: self.num_processes])

    def device(self, named: str | None) -> str | None:
        """The device to use: several processes that may use CUDA have a GPU each.

        Raises:
            UserError: there are fewer GPUs than processes.
        """
        if self.num_processes == 1 or named not in (None, "cuda") or not torch.cuda.is_available():
            return named
        if self.num_processes > torch.cuda.device_count():
            raise UserError(
                f"{self.num_processes} processes on {torch.cuda.device_count()} CUDA devices",
                "start as many as there are devices, or name one for all with --device",
            )
        return f"cuda:{self.rank}"


def run_rank(
    job: GenerationJob,
    share: Share = Share(),
    *,
    say: Callable[[str], None] = lambda text: None,
    on_progress: OnProgress = lambda done, total: None,
) -> Iterator[Path]:
    """Make a process's share of the images, and write each as soon as its batch is done; yields their paths.

    A batch of which some images exist already is made as a whole, so that the rest is bit for bit what it would have
    been; those that exist are kept.

    Args:
        say: called with what is being done.

    Raises:
        UserError: a model, a setting or a device cannot be used, a file is in the way, or the disk is full.
    """
    options, target = job.model_options, job.target
    signer = target.signing.signer() if target.signing else None
    checker = target.safety.checker() if target.safety else None
    say("loading the model")
    pipeline = load_model(replace(options, device=share.device(options.device)), job.original)
    batches = share.of(job.batches)
    pipeline.engine = choose_engine_together(job.engine_here, pipeline, job.images, share.folder)
    if pipeline.engine is not None:
        pipeline.denoiser.to("meta")  # the engine has a copy of the weights; torch's is freed
    if options.compile:
        say("compiling")
        compile_for(pipeline, batches)
    finished: frozenset[int] = frozenset()
    refused: list[Path] = []
    if target.resume:
        say("checking the images that exist")
        finished = finished_images(pipeline, batches, target)
    say("making images")
    on_progress(0, 0)
    for made in pipeline.make_images(
        [batch for batch in batches if any(image.number not in finished for image in batch)],
        batch_size=options.batch_size,
        halve=True,
        on_step=lambda done, total, step, latents: on_progress(done, total),
    ):
        if made.request.number not in finished:
            path = target.path(made.request)
            image = checked(made, path.name, checker) if checker else made
            if image is None:
                refused.append(path)
                continue
            data = image_file(image, signer, target.file_format, target.quality)
            write_new(path, data, overwrite=target.overwrite)
            yield path
    if refused:
        raise refusal(refused, sum(map(len, batches)))
