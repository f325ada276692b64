"""The weights in a pickled checkpoint, taken out in a process of its own: only tensors come through.

The process reads with `weights_only=True`, which runs nothing of what a pickle asks for, and gets neither the
environment of the user nor a place to write but one temporary file.
"""

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ldm.errors import UserError

PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "OMP_NUM_THREADS")
"""Of the environment, what the process gets: no token is among it."""

LEFT_OUT = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
)
"""Classes that the original checkpoints name beside their weights, as keys of what their callbacks remembered."""

HINT = "ask for its safetensors"


@contextmanager
def unpickled(path: Path) -> Iterator[Path]:
    """The tensors of a pickled checkpoint as a safetensors file, for as long as the block lasts.

    Raises:
        UserError: the file is missing or damaged, or asks for more than tensors.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist", "name a checkpoint")
    with TemporaryDirectory(prefix="ldm-import-") as folder:
        dest = Path(folder) / f"{path.stem}.safetensors"
        command = [
            sys.executable,
            "-P",
            "-m",
            "ldm.models.loading.pickled_file",
            str(path.resolve()),
            str(dest),
        ]
        done = subprocess.run(
            command, env=environment(), cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode or not dest.is_file():
            raise UserError(f"{path} is not read ({_last_line(done.stderr)})", HINT)
        yield dest


def environment() -> dict[str, str]:
    """What the process that reads a pickle knows of the user's environment, and where this package lies."""
    passed_on = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
    return passed_on | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "its reader ended without a word"


def convert(path: Path, dest: Path) -> None:
    """Read a pickle's tensors and write them as safetensors; to be run in a process of its own.

    Raises:
        ValueError: in one line, why the pickle is not read.
    """
    from ldm.io.files import write_tensors

    try:
        found = _load(path)
    except Exception as error:  # whatever a hostile file makes of the reader
        raise ValueError(_reason(error)) from None
    tensors = _tensors(found)
    if not tensors:
        raise ValueError("it holds no tensors by name")
    write_tensors(dest, tensors)


def _load(path: Path) -> Any:
    """What a pickle holds of tensors, numbers, text, lists and dictionaries; anything else is an error."""
    import torch

    known: list[Any] = [(_LeftOut, name) for name in LEFT_OUT]
    with warnings.catch_warnings(), torch.serialization.safe_globals(known):
        warnings.simplefilter("ignore")  # of old formats, which is why the file is converted
        return torch.load(path, map_location="cpu", weights_only=True)


class _LeftOut:
    """Stands where a checkpoint names a class of its training program; it can be made, and does nothing."""


def _reason(error: Exception) -> str:
    """What a pickle asked for, or what else is wrong, without the library's advice on how to trust it all the same."""
    text = str(error).strip()
    if wanted := re.search(r"\bGLOBAL (\S+)", text):
        return f"it asks for {wanted[1]}, and only tensors are taken"
    if "weights_only" in text:
        return "it holds more than tensors"
    return " ".join((text.splitlines() or [type(error).__name__])[0].split())[:200]


def _tensors(found: Any) -> dict[str, Any]:
    """The tensors by name, below `state_dict` where there is one; all else is left behind."""
    import torch

    while isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    items = found.items() if isinstance(found, dict) else ()
    return {
        str(name): tensor for name, tensor in items if isinstance(tensor, torch.Tensor) and _is_plain(tensor)
    }


def _is_plain(tensor: Any) -> bool:
    return not (tensor.is_sparse or tensor.is_quantized or tensor.is_meta)


def main() -> int:
    """`python -m ldm.models.loading.pickled_file CHECKPOINT DEST`."""
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except (ValueError, UserError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
