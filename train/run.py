"""What surrounds the loop in every program: the run directory, the devices, stopping, saving and resuming."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

from ldm.config import load_settings, read_yaml, to_yaml
from ldm.data.batches import BatchOrder, make_loader
from ldm.errors import UserError
from ldm.files import disk_errors, write_bytes

from .log import TrainLog
from .loop import Periodic, train_steps
from .optim import WeightAverage, make_optimizer
from .settings import TrainSettings
from .state import TrainState, checkpoints, load_checkpoint, newest_whole, save_checkpoint

AnyTrainSettings = TypeVar("AnyTrainSettings", bound=TrainSettings)

# Settings that may differ between a run and its resumption: they change what is said and kept, not what is computed.
HARMLESS = {
    "log_every",
    "save_every",
    "preview_every",
    "keep_checkpoints",
    "max_micro_batch",
    "device",
    "run_dir",
}


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; the run was saved."""

    def __init__(self, signal_number: int, step: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(f"stopped and saved at step {step}; run the same command to go on")


@dataclass
class StopSignal:
    """Remembers the first SIGINT or SIGTERM; a second one ends the process at once."""

    number: int = 0

    @contextmanager
    def watching(self) -> Iterator["StopSignal"]:
        """Handle both signals inside the block, and put the former handlers back after it."""
        former = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number

    def agreed(self, accelerator: Accelerator) -> int:
        """The signal that any rank received, or 0: all ranks stop at the same step."""
        if accelerator.num_processes == 1:
            return self.number
        number = torch.tensor(self.number, device=accelerator.device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return int(number)


@dataclass
class Run:
    """One training run: its settings, its directory and its devices."""

    settings: TrainSettings
    accelerator: Accelerator = field(init=False)

    def __post_init__(self) -> None:
        self.accelerator = make_accelerator(self.settings)
        _check_resumable(self.settings)
        torch.manual_seed(self.settings.seed)  # the random start of the networks

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device(self.accelerator.device)

    @property
    def run_dir(self) -> Path:
        """The run's directory."""
        return self.settings.run_dir

    def train(
        self,
        task: nn.Module,
        dataset: "Dataset[Any]",
        *,
        preview: Callable[[TrainState, Path], None],
    ) -> TrainState:
        """Train `task` to the end of the settings, resuming where a checkpoint is, saving as it goes.

        Args:
            task: maps a batch to per-sample tensors, among them `loss`.
            dataset: indexed by SampleKey.
            preview: draws a picture of what the state can do into the path given.

        Raises:
            Interrupted: a signal arrived; a checkpoint was written.
            UserError: the loss is no longer finite, or the disk is full.
        """
        if self.main:
            _open_run_dir(self.settings)
        self.accelerator.wait_for_everyone()
        state = self._start(task)
        model = self.accelerator.prepare_model(task)
        order = self._order(len(dataset), state.step)  # type: ignore[arg-type]  # a map-style dataset has a length
        log = TrainLog(self.run_dir, start_step=state.step, num_steps=self.settings.num_steps, main=self.main)
        with StopSignal().watching() as stop, log:
            log.say(self._plan(len(dataset), state))  # type: ignore[arg-type]
            periodic = self._periodic(state, log, preview)
            loader = make_loader(dataset, order, self.settings.data.num_workers)
            for record in train_steps(state, model, loader, self.accelerator, self.settings):
                if record.step % self.settings.log_every == 0 or record.step == self.settings.num_steps:
                    log.record(record)
                number = stop.agreed(self.accelerator)
                for job in periodic:
                    if job.due(record.step, self.settings.num_steps) and not number:
                        job.action(record.step)
                if number:
                    self._save(state)
                    raise Interrupted(number, state.step)
        return state

    def _start(self, task: nn.Module) -> TrainState:
        task.to(self.device)
        optimizer = make_optimizer(task.parameters(), self.settings.optim)
        state = TrainState(task, optimizer, WeightAverage(task, self.settings.optim.ema_decay))
        checkpoint, faults = newest_whole(self.run_dir / "checkpoints")
        for fault in faults:
            if self.main:
                print(f"warning: {fault}; going back to {checkpoint}", file=sys.stderr)
        if checkpoint:
            load_checkpoint(state, checkpoint)
        return state

    def _order(self, num_samples: int, start_step: int) -> BatchOrder:
        settings = self.settings
        return BatchOrder(
            settings.seed,
            num_samples,
            settings.global_batch_size,
            start_step,
            settings.num_steps,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )

    def _plan(self, num_samples: int, state: TrainState) -> str:
        settings = self.settings
        weights = sum(p.numel() for p in state.average.live.values())
        passes = settings.num_steps * settings.global_batch_size / num_samples
        begin = f"resuming at step {state.step}" if state.step else "starting"
        return (
            f"{begin}: {settings.program} with {weights / 1e6:.1f}M trained weights on {self.device.type} x "
            f"{self.accelerator.num_processes}; {num_samples} samples, {settings.num_steps} steps of "
            f"{settings.global_batch_size} samples ({passes:.1f} passes); {self.run_dir}"
        )

    def _periodic(
        self, state: TrainState, log: TrainLog, preview: Callable[[TrainState, Path], None]
    ) -> list[Periodic]:
        def draw(step: int) -> None:
            if self.main:
                path = self.run_dir / "previews" / f"step-{step:06d}.png"
                path.parent.mkdir(exist_ok=True)
                preview(state, path)

        jobs = [Periodic(self.settings.preview_every, draw)]
        if state.step < self.settings.num_steps:
            jobs.append(Periodic(self.settings.save_every, lambda _: self._save(state)))
        return jobs

    def _save(self, state: TrainState) -> None:
        if self.main:
            save_checkpoint(state, self.run_dir / "checkpoints", self.settings.keep_checkpoints)
        self.accelerator.wait_for_everyone()


def make_accelerator(settings: TrainSettings) -> Accelerator:
    """Accelerate on CUDA where there is one, else on the CPU.

    Raises:
        UserError: bf16 was asked for without a CUDA device, or there are fewer devices than processes.
    """
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    if cpu and settings.mixed_precision == "bf16":
        raise UserError("mixed_precision = 'bf16' without a CUDA device", "set mixed_precision=no")
    num_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not cpu and num_here > torch.cuda.device_count():
        raise UserError(
            f"{num_here} processes on {torch.cuda.device_count()} CUDA devices",
            "start as many as there are devices",
        )
    accelerator = Accelerator(cpu=cpu, mixed_precision=settings.mixed_precision)
    # Accelerate can come up as one process under a launcher of two; each would then train a model of its own.
    assert accelerator.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
    return accelerator


def _open_run_dir(settings: TrainSettings) -> None:
    """Make the directory and record the settings: only now, when all that could be wrong with them has been found."""
    with disk_errors(settings.run_dir):
        settings.run_dir.mkdir(parents=True, exist_ok=True)
    write_bytes(settings.run_dir / "config.yaml", to_yaml(settings).encode())


def _check_resumable(settings: TrainSettings) -> None:
    """A run that has checkpoints goes on with the settings it was begun with, or not at all."""
    path = settings.run_dir / "config.yaml"
    if not (path.is_file() and checkpoints(settings.run_dir / "checkpoints")):
        return
    saved, now = read_yaml(path), settings.model_dump(mode="json")
    changed = sorted(key for key in saved.keys() | now.keys() if saved.get(key) != now.get(key))
    serious = [key for key in changed if key not in HARMLESS]
    if serious:
        raise UserError(
            f"{settings.run_dir} was begun with other settings: {', '.join(_differences(saved, now, serious))}",
            "use another run_dir, or the same settings to resume",
        )


def _differences(saved: dict[str, Any], now: dict[str, Any], keys: list[str]) -> list[str]:
    lines = []
    for key in keys:
        old, new = saved.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            inner = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
            lines += [f"{key}.{k} was {old.get(k)!r}, now {new.get(k)!r}" for k in inner]
        else:
            lines.append(f"{key} was {old!r}, now {new!r}")
    return lines


def run_program(
    kind: type[AnyTrainSettings],
    program: Callable[[AnyTrainSettings], None],
    argv: Sequence[str] | None = None,
) -> int:
    """A program's `main`: read `CONFIG key=value ...`, run, and turn what a user can mend into one line and code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if not arguments or arguments[0].startswith("-"):
            raise UserError(
                "no configuration file given", f"usage: {kind.__name__} CONFIG.yaml key=value ..."
            )
        program(load_settings(kind, Path(arguments[0]), arguments[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0
