"""Comparing how another library reads a model, in a fresh process, with how we read it."""

import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.export.verify.readers import READERS
from ldm.export.verify.trial import largest_difference, trial_for, trial_inputs, trial_outputs
from ldm.io.files import read_tensors, write_json, write_tensors
from ldm.io.temporary import working_folder
from ldm.models.loading.model import ModelParts

TOLERANCE = 1.0
"""In 255ths: one step of an 8-bit image, as `ldm generate` promises in comparison with diffusers."""


@dataclass(frozen=True)
class Verdict:
    """How a library reads a model, compared with us.

    Attributes:
        reader: the library, with its version.
        largest_difference: between its generated image and ours, and between its encoded image and ours, in 255ths.
        tolerance: the largest difference that passes.
        lora_effect: how much the LoRA changes our result, in 255ths. A reader that ignores the LoRA is that far off.
    """

    reader: str
    largest_difference: float
    tolerance: float = TOLERANCE
    lora_effect: float | None = None

    @property
    def passed(self) -> bool:
        return self.largest_difference <= self.tolerance

    def __str__(self) -> str:
        difference = f"largest difference {self.largest_difference:.3g}/255, tolerance {self.tolerance:g}/255"
        if self.lora_effect is None:
            return f"read by {self.reader}: {difference}"
        weak = "" if self.lora_effect > self.tolerance else ", too little to tell whether it was read"
        return f"read by {self.reader}: {difference}; the LoRA changes it by {self.lora_effect:.3g}/255{weak}"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, which has no infinity."""
        found = asdict(self) | {"unit": "1/255", "passed": self.passed}
        finite = self.largest_difference < float("inf")
        return found if finite else found | {"largest_difference": None}


def verify(
    parts: ModelParts,
    reader: str,
    *,
    folder: Path,
    file: Path | None = None,
    variant: str | None = None,
    without_lora: ModelParts | None = None,
) -> Verdict:
    """Have a reader generate an image and encode one in a fresh process, and compare the results with ours.

    Args:
        parts: the model that the reader should get, with its weights rounded as stored.
        reader: a key of `ldm.export.verify.readers.READERS`.
        folder: the exported folder; for a LoRA its base's, for a single file one with the configurations.
        file: the single file, the LoRA file, or peft's folder.
        without_lora: the base alone, if a LoRA is read.

    Raises:
        UserError: the reader cannot read it.
    """
    trial = trial_for(parts)
    with working_folder("verify") as temporary:
        inputs, outputs, task = (temporary / name for name in ("inputs", "outputs", "task.json"))
        write_tensors(inputs, trial_inputs(parts, trial))
        source = {"reader": reader, "folder": str(folder), "file": str(file), "variant": variant}
        write_json(task, {**source, "inputs": str(inputs), "outputs": str(outputs), "trial": asdict(trial)})
        _run(task, reader)
        theirs = read_tensors(outputs)
    library, ours = READERS[reader][0], trial_outputs(parts, trial)
    effect = largest_difference(ours, trial_outputs(without_lora, trial)) if without_lora else None
    return Verdict(f"{library} {version(library)}", largest_difference(ours, theirs), lora_effect=effect)


def _run(task: Path, reader: str) -> None:
    """Run a fresh process on the CPU, without network access.

    Raises:
        UserError: it failed; the error has the last line of its output.
    """
    home = str(Path(__file__).parents[3])
    search = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    isolated = {"HF_HUB_OFFLINE": "1", "DIFFUSERS_DISABLE_REMOTE_CODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "ldm.export.verify.readers", str(task)],
        env={**os.environ, **isolated, "PYTHONPATH": search, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{READERS[reader][0]} cannot read the model ({reason})", "report this as a bug")
