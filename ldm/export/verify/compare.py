"""Whether what was written means to others what it means to us: read in a fresh process, drawn, compared."""

import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.export.verify.readers import READERS
from ldm.export.verify.trial import largest_difference, trial_answer, trial_for, trial_given
from ldm.io.files import read_tensors, write_json, write_tensors
from ldm.models.loading.model import ModelParts

TOLERANCE = 1.0
"""In 255ths: a step of an 8-bit picture, as `ldm generate` promises against diffusers."""


@dataclass(frozen=True)
class Verdict:
    """What a reader made of an exported model.

    Attributes:
        reader: the library, with its version.
        largest_difference: between its picture and ours, and an image encoded by it and by us, in 255ths.
        tolerance: the largest that passes.
        lora_effect: how far the LoRA moves our answer, in 255ths: a reader that passes a LoRA by is that far off.
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
        weak = "" if self.lora_effect > self.tolerance else ": too little to tell whether it was read"
        return f"read by {self.reader}: {difference}; the LoRA moves it by {self.lora_effect:.3g}/255{weak}"

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
    """Have a picture made and an image encoded by a reader in a fresh process, and compare them with ours.

    Args:
        parts: what the exported model must mean, with the weights as they were rounded.
        reader: a key of `ldm.export.verify.readers.READERS`.
        folder: the exported folder; of a LoRA its base's, of a single file one with the configurations.
        file: the single file, the LoRA file, or peft's folder.
        without_lora: the base alone, where a LoRA is read.

    Raises:
        UserError: the reader does not read it.
    """
    trial = trial_for(parts)
    with tempfile.TemporaryDirectory(prefix="ldm-verify-") as temporary:
        given, output, order = (Path(temporary) / name for name in ("given", "answer", "order.json"))
        write_tensors(given, trial_given(parts, trial))
        told = {"reader": reader, "folder": str(folder), "file": str(file), "variant": variant}
        write_json(order, {**told, "given": str(given), "answer": str(output), "trial": asdict(trial)})
        _run(order, reader)
        theirs = read_tensors(output)
    library, ours = READERS[reader][0], trial_answer(parts, trial)
    effect = largest_difference(ours, trial_answer(without_lora, trial)) if without_lora else None
    return Verdict(f"{library} {version(library)}", largest_difference(ours, theirs), lora_effect=effect)


def _run(order: Path, reader: str) -> None:
    """Start the fresh process, on the CPU, without a network.

    Raises:
        UserError: it failed; with the last line that it said.
    """
    home = str(Path(__file__).parents[3])
    search = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    careful = {"HF_HUB_OFFLINE": "1", "DIFFUSERS_DISABLE_REMOTE_CODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "ldm.export.verify.readers", str(order)],
        env={**os.environ, **careful, "PYTHONPATH": search, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(
            f"{READERS[reader][0]} does not read what was written ({said})", "report this as a bug"
        )
