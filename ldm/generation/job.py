"""What a call of `ldm generate` is to do, and the share of it that one process does.

The work is cut into batches before it is shared, and a share follows from the process's rank alone: no process waits
for another, and the files are the same however many there are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from pydantic import TypeAdapter

from ldm.errors import UserError
from ldm.generation.batches import OnProgress, PictureBatch, plan_batches, work_of, write_pictures
from ldm.generation.compiling import compile_for
from ldm.generation.finished import finished_pictures
from ldm.generation.model_options import ModelOptions, load_model
from ldm.generation.pictures import Picture, Target
from ldm.generation.reproduce import Recipe
from ldm.io.files import write_bytes
from ldm.pipeline.engine_choice import choose_engine

if TYPE_CHECKING:
    from ldm.models.engines.openvino_denoiser import OpenVINODenoiser
    from ldm.pipeline.pipeline import Pipeline

_ORDER = "order.json"
_ENGINE = "engine"


@dataclass(frozen=True)
class GenerationJob:
    """What is to be done, down to each picture.

    Attributes:
        recipe: of the picture that is made again, or None.
    """

    pictures: tuple[Picture, ...]
    target: Target
    means: ModelOptions
    recipe: Recipe | None = None

    @property
    def batches(self) -> list[PictureBatch]:
        return plan_batches(self.pictures, self.means.batch_size)

    def write(self, folder: Path) -> None:
        """Put it down for other processes, which read neither the prompt file nor standard input again."""
        write_bytes(folder / _ORDER, TypeAdapter(GenerationJob).dump_json(self))


def read_job(folder: Path) -> GenerationJob:
    """What `GenerationJob.write` put into a folder."""
    return TypeAdapter(GenerationJob).validate_json((folder / _ORDER).read_bytes())


@dataclass(frozen=True)
class Share:
    """The part of the work that falls to one process.

    Attributes:
        rank: of the process, from 0.
        folder: where the processes leave each other word; None for a process that is alone.
    """

    rank: int = 0
    num_processes: int = 1
    folder: Path | None = None

    def of(self, batches: Sequence[PictureBatch]) -> list[PictureBatch]:
        """Every `num_processes`-th batch, from that of the rank on."""
        return list(batches[self.rank :: self.num_processes])

    def device(self, named: str | None) -> str | None:
        """The device to use: of several processes that may use CUDA, each has a GPU of its own.

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
    order: GenerationJob,
    share: Share = Share(),
    *,
    say: Callable[[str], None] = lambda text: None,
    on_progress: OnProgress = lambda done, total: None,
) -> Iterator[Path]:
    """Make a process's share of the pictures and write each as soon as its batch is done; yields their paths.

    With `target.resume`, pictures that are there already are kept.

    Args:
        say: called with what is being done.

    Raises:
        UserError: a model, a setting or a device cannot be used, a file is in the way, or the disk is full.
    """
    say("loading the model")
    pipeline = load_model(replace(order.means, device=share.device(order.means.device)), order.recipe)
    batches = share.of(order.batches)
    pipeline.engine = _choose_engine(order, pipeline, share)
    if order.means.compile:
        say("compiling")
        compile_for(pipeline, batches)
    finished: frozenset[int] = frozenset()
    if order.target.resume:
        say("looking at the pictures that are there")
        finished = finished_pictures(pipeline, batches, order.target)
    say("making pictures")
    yield from write_pictures(
        pipeline,
        batches,
        order.target,
        batch_size=order.means.batch_size,
        finished=finished,
        on_progress=on_progress,
    )


def _choose_engine(order: GenerationJob, pipeline: "Pipeline", share: Share) -> "OpenVINODenoiser | None":
    """The engine; of several processes the first in turn converts the network, and decides for all what `auto` is.

    It follows from the work of all together: a share would make it depend on how many processes there are.
    """
    name = order.means.engine or (order.recipe.engine if order.recipe else "torch")
    work = work_of(pipeline, [picture for batch in order.batches for picture in batch.pictures])
    if share.folder is None or name == "torch":
        return choose_engine(name, pipeline.denoiser, work)
    with _in_turn(share.folder / _ENGINE) as decision:
        decided = decision.read()
        engine = choose_engine(decided or name, pipeline.denoiser, work)
        if not decided:  # what is written to a file opened to append comes behind what is there
            decision.write(engine.name if engine else "torch")
    return engine


@contextmanager
def _in_turn(path: Path) -> Iterator[IO[str]]:
    """A file that one process at a time has open, to read and to add to; the others wait."""
    import fcntl

    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file
