"""Comparing how another library reads a model, in a fresh process, with how we read it.

Our own results are computed first, so that the model's memory can be freed before the other library loads it.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.errors import UserError
from ldm.export.verify.readers import READERS
from ldm.export.verify.trial import (
    Trial,
    differences,
    largest_difference,
    trial_for,
    trial_inputs,
    trial_outputs,
)
from ldm.io.files import read_tensors, write_json, write_tensors
from ldm.io.temporary import working_folder
from ldm.models.adapters.lora import LoraWeights, apply_lora
from ldm.models.loading.model import ModelParts

TOLERANCE = 1.0
"""In 255ths: one step of an 8-bit image, as `ldm generate` promises in comparison with diffusers."""

MEMORY = re.compile(r"MemoryError|bad_alloc|[Cc]annot allocate memory|can't allocate memory")
ERROR_LINE = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Warning|Interrupt|Exit)\b")
FOR_MEMORY = "free memory and run it again; this says nothing about the model"
OF_THE_MODEL = (
    "run `ldm verify` on the model that was exported: if it says the same, the model's own files are the cause; "
    "if not, report this as a bug"
)


class NotVerified(UserError):
    """The reader could not do its work, which says nothing about the model: it was killed, or short of memory."""


@dataclass(frozen=True)
class Verdict:
    """How a library reads a model, compared with us.

    Attributes:
        reader: the library, with its version.
        largest_difference: between its generated image and ours, and between its encoded image and ours, in 255ths.
        tolerance: the largest difference that passes.
        lora_effect: how much the LoRA changes our result, in 255ths. A reader that ignores the LoRA is that far off.
        cause: where a difference comes from, as far as the results tell, and what to do about it.
    """

    reader: str
    largest_difference: float
    tolerance: float = TOLERANCE
    lora_effect: float | None = None
    cause: str | None = None

    @property
    def passed(self) -> bool:
        return self.largest_difference <= self.tolerance

    def __str__(self) -> str:
        difference = f"largest difference {self.largest_difference:.3g}/255, tolerance {self.tolerance:g}/255"
        told = [f"read by {self.reader}: {difference}"]
        if self.lora_effect is not None:
            weak = "" if self.lora_effect > self.tolerance else ", too little to tell whether it was read"
            told.append(f"the LoRA changes it by {self.lora_effect:.3g}/255{weak}")
        return "; ".join([*told, *filter(None, [self.cause])])

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, which has no infinity."""
        found = asdict(self) | {"unit": "1/255", "passed": self.passed}
        if self.cause is None:
            del found["cause"]
        finite = self.largest_difference < float("inf")
        return found if finite else found | {"largest_difference": None}


@dataclass(frozen=True)
class Expected:
    """What a reader should get of a model, on inputs of its trial.

    Attributes:
        without_lora: what it would get if it ignored the model's LoRA, if there is one.
    """

    trial: Trial
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    without_lora: Mapping[str, Tensor] | None = None


def expect(parts: ModelParts) -> Expected:
    """Our own results for a model, with its weights rounded as stored."""
    trial = trial_for(parts)
    return Expected(trial, trial_inputs(parts, trial), trial_outputs(parts, trial))


def expect_lora(base: ModelParts, weights: LoraWeights) -> Expected:
    """Our own results for a LoRA on its base, to which it is added in place."""
    trial = trial_for(base)
    plain = trial_outputs(base, trial)
    apply_lora(base.lora_networks(), weights)
    return Expected(trial, trial_inputs(base, trial), trial_outputs(base, trial), plain)


def verify(
    expected: Expected,
    reader: str,
    *,
    folder: Path,
    file: Path | None = None,
    variant: str | None = None,
) -> Verdict:
    """Have a reader generate an image and encode one in a fresh process, and compare the results with ours.

    Args:
        reader: a key of `ldm.export.verify.readers.READERS`.
        folder: the exported folder; for a LoRA its base's, for a single file one with the configurations.
        file: the single file, the LoRA file, or peft's folder.

    Raises:
        UserError: the reader cannot read it.
        NotVerified: the reader was killed, or there is not enough memory for it.
    """
    with working_folder("verify") as temporary:
        inputs, outputs, task = (temporary / name for name in ("inputs", "outputs", "task.json"))
        write_tensors(inputs, expected.inputs)
        source = {"reader": reader, "folder": str(folder), "file": str(file), "variant": variant}
        places = {"inputs": str(inputs), "outputs": str(outputs)}
        write_json(task, {**source, **places, "trial": asdict(expected.trial)})
        _run(task, reader)
        theirs = read_tensors(outputs)
    library, found = READERS[reader][0], differences(expected.outputs, theirs)
    plain = expected.without_lora
    effect = largest_difference(expected.outputs, plain) if plain else None
    largest = max(found.values())
    cause = _cause(expected.outputs, theirs, found, library) if largest > TOLERANCE else None
    return Verdict(f"{library} {version(library)}", largest, lora_effect=effect, cause=cause)


def _cause(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], found: Mapping[str, float], library: str
) -> str:
    """What the results tell about why they differ, and what to do."""
    if not all(bool(tensor.isfinite().all()) for tensor in ours.values()):
        return (
            "our own image has values that are not finite, too: the model is damaged; `ldm verify --no-draw` "
            "names the weights, and an earlier checkpoint may be whole"
        )
    if not all(name in theirs and bool(theirs[name].isfinite().all()) for name in ours):
        return f"{library}'s image has values that are not finite; another --dtype may help"
    parts = {"pixels": "the denoiser, the text encoder or the scheduler", "encoded": "the autoencoder"}
    wrong = " and ".join(parts[name] for name, value in found.items() if value > TOLERANCE)
    return f"{library} reads {wrong} differently; {OF_THE_MODEL}"


def _run(task: Path, reader: str) -> None:
    """Run a fresh process on the CPU, without network access.

    Raises:
        UserError: it failed; the error has the reason from its output.
        NotVerified: it was killed, or short of memory.
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
        raise reader_failure(READERS[reader][0], done.returncode, done.stderr, _peak_gb())


def reader_failure(library: str, code: int, stderr: str, peak_gb: float) -> UserError:
    """Why a reader failed.

    Args:
        code: its exit code; minus the number of the signal that ended it.
        peak_gb: the most memory that it had.
    """
    reason = _reason(stderr)
    needed = f"it had {peak_gb:.1f} GB of memory"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = FOR_MEMORY if name == "SIGKILL" else "run it again; this says nothing about the model"
        return NotVerified(f"{name} ended {library} while it read the model; {needed}", hint)
    if MEMORY.search(reason):
        return NotVerified(
            f"{library} had too little memory to read the model ({reason}); {needed}", FOR_MEMORY
        )
    said = f"exit code {code}: {reason}" if code != 1 else reason
    return UserError(f"{library} cannot read the model ({said})", OF_THE_MODEL)


def _reason(stderr: str) -> str:
    """The line of a traceback that names the error, which may have several lines; otherwise the last line."""
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    named = [line for line in lines if ERROR_LINE.match(line)]
    return " ".join((named or lines or ["no message"])[-1].split())[:300]


def _peak_gb() -> float:
    """The most memory that any child process had so far."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9
