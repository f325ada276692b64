"""The metrics of a made-up training run."""

import json
from pathlib import Path
from typing import Any

from ldm.evaluation.curves import TENTHS

LOSSES = [1.0, 0.5, 0.25, 0.2, 0.1]


def rows_of(losses: list[float] = LOSSES, *, tenths: bool = False) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step, loss in enumerate(losses, 1):
        more = {name: loss * (10 - tenth) for tenth, name in enumerate(TENTHS)} if tenths else {}
        rows.append({"step": step, "loss": loss, "learning_rate": 2e-4 / step, "grad_norm": 1.0, **more})
        rows.append({"step": step, "validation_loss": 2 * loss, "validation_loss_stderr": loss / 10})
    return rows


def write_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
