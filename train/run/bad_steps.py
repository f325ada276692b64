"""Steps skipped because the loss or the gradient was not finite: counted, told, and at some number the end."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ldm.errors import UserError

from ..loop.steps import StepRecord
from .log import drop_rows_after
from .state import TrainState


class BadSteps:
    """The skipped steps of a run, in `bad_steps.jsonl` with the samples of each.

    What the device knows of a step is read only in `settle`, so that nothing waits for it at every step.

    Args:
        path: the file; rows of steps after `state.step` are dropped, for a resumed run does those steps again.
        max_bad_steps: so many end the run.
    """

    def __init__(self, path: Path, state: TrainState, max_bad_steps: int, accelerator: Accelerator) -> None:
        self.path, self.state, self.max_bad_steps = path, state, max_bad_steps
        self.accelerator = accelerator
        self._unread: list[StepRecord] = []
        if accelerator.is_main_process:
            drop_rows_after(path, state.step)

    def note(self, record: StepRecord) -> None:
        """Take in a step, unread."""
        self._unread.append(record)

    def settle(self) -> list[int]:
        """Read the steps noted, count and write down the bad ones, and return their numbers. Every rank calls it.

        Raises:
            UserError: the run has had `max_bad_steps` of them.
        """
        records, self._unread = self._unread, []
        flags = torch.stack([r.bad for r in records]).tolist() if records else []
        bad = [record for record, flag in zip(records, flags, strict=True) if flag]
        rows = [self._row(record) for record in bad]
        self.state.num_bad_steps += len(rows)
        if rows and self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        if self.state.num_bad_steps >= self.max_bad_steps:
            raise UserError(
                f"{self.state.num_bad_steps} steps were skipped, their loss or gradient was not finite",
                f"look at the samples named in {self.path}; if they are good, lower optim.learning_rate and go on "
                "from the weights with `ldm train CONFIG --fork NEW_DIR`",
            )
        return [record.step for record in bad]

    def _row(self, record: StepRecord) -> dict[str, Any]:
        """One step: the loss of every sample of the global batch, by its id."""
        values = record.sample_losses.float().tolist()
        mine = [(name, _number(v)) for name, v in zip(record.sample_ids, values, strict=True)]
        grad_norm = _number(float(record.grad_norm))
        return {"step": record.step, "grad_norm": grad_norm, "samples": dict(gather_object(mine))}


def _number(value: float) -> float | str:
    """A number that JSON has, or the name of one that it has not."""
    return value if math.isfinite(value) else str(value)
