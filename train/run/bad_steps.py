"""Steps skipped because the loss or the gradient was not finite: counted, logged, and after too many an error."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ldm.errors import UserError
from ldm.io.files import disk_errors

from ..loop.processes import processes_of
from ..loop.state import TrainState
from ..loop.steps import StepRecord
from .log import drop_rows_after


class BadSteps:
    """The skipped steps of a run, written to `bad_steps.jsonl` with the samples of each.

    Values on the device are read only in `settle`, so that steps do not wait for it.

    Args:
        path: the file; rows of steps after `state.step` are dropped, because a resumed run repeats those steps.
        max_bad_steps: this many end the run.
    """

    def __init__(self, path: Path, state: TrainState, max_bad_steps: int, accelerator: Accelerator) -> None:
        self.path, self.state, self.max_bad_steps = path, state, max_bad_steps
        self.main = processes_of(accelerator).is_main
        self._unread: list[StepRecord] = []
        if self.main:
            drop_rows_after(path, state.step)

    def note(self, record: StepRecord) -> None:
        """Remember a step without reading it."""
        self._unread.append(record)

    def settle(self) -> list[int]:
        """Read the remembered steps, count and write the bad ones, and return their numbers. Every process calls it.

        Raises:
            UserError: the run has had `max_bad_steps` of them.
        """
        records, self._unread = self._unread, []
        flags = torch.stack([r.bad for r in records]).tolist() if records else []
        bad = [record for record, flag in zip(records, flags, strict=True) if flag]
        rows = [self._row(record) for record in bad]
        self.state.num_bad_steps += len(rows)
        if rows and self.main:
            with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        if self.state.num_bad_steps >= self.max_bad_steps:
            raise UserError(
                f"{self.state.num_bad_steps} steps were skipped because their loss or gradient was not finite",
                f"check the samples named in {self.path}; if they are good, lower optim.learning_rate and continue "
                "from the weights with `ldm train CONFIG --fork NEW_DIR`",
            )
        return [record.step for record in bad]

    def _row(self, record: StepRecord) -> dict[str, Any]:
        """One step: the losses of all samples of the global batch, by sample id."""
        values = record.sample_losses.float().tolist()
        mine = [(name, _number(v)) for name, v in zip(record.sample_ids, values, strict=True)]
        grad_norm = _number(float(record.grad_norm))
        return {"step": record.step, "grad_norm": grad_norm, "samples": dict(gather_object(mine))}


def _number(value: float) -> float | str:
    """The number, or its name if JSON cannot represent it."""
    return value if math.isfinite(value) else str(value)
