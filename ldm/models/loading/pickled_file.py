"""Extract the weights from a pickled checkpoint in a separate process: only tensors come through.

The process reads with `weights_only=True`, which runs no code from the pickle. It does not get the user's environment,
and writes to one temporary file only.
"""

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.io.temporary import working_folder

PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "OMP_NUM_THREADS")
"""The environment variables that the process gets; none of them holds a token."""

LEFT_OUT = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
)
"""Classes that original checkpoints contain besides weights, as keys of their callbacks' states."""

HINT = "ask for its safetensors"


@contextmanager
def unpickled(path: Path) -> Iterator[Path]:
    """The tensors of a pickled checkpoint as a safetensors file that exists for the duration of the block.

    Raises:
        UserError: the file is missing or damaged, or contains more than tensors.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist", "name a checkpoint")
    with working_folder("import") as folder:
        dest = folder / f"{path.stem}.safetensors"
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
            raise UserError(f"{path} cannot be read ({_last_line(done.stderr)})", HINT)
        yield dest


def environment() -> dict[str, str]:
    """The environment of the process that reads a pickle, with the path of this package."""
    passed_on = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
    return passed_on | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "its reader exited without a message"


def convert(path: Path, dest: Path) -> None:
    """Read a pickle's tensors and write them as safetensors; to be run in a separate process.

    Raises:
        ValueError: why the pickle cannot be read, in one line.
    """
    from ldm.io.files import write_tensors

    try:
        found = _load(path)
    except Exception as error:  # a hostile file may raise anything in the reader
        raise ValueError(_reason(error)) from None
    tensors = _tensors(found)
    if not tensors:
        raise ValueError("it has no named tensors")
    write_tensors(dest, tensors)


def _load(path: Path) -> Any:
    """The tensors, numbers, text, lists and dictionaries in a pickle; anything else is an error."""
    import torch

    known: list[Any] = [(_LeftOut, name) for name in LEFT_OUT]
    with warnings.catch_warnings(), torch.serialization.safe_globals(known):
        warnings.simplefilter("ignore")  # about old formats, which is why the file is converted
        return torch.load(path, map_location="cpu", weights_only=True)


class _LeftOut:
    """Replaces a class of the training program in a checkpoint; it can be instantiated and does nothing."""


def _reason(error: Exception) -> str:
    """Why a pickle was refused, without the library's advice on how to load it anyway."""
    text = str(error).strip()
    if wanted := re.search(r"\bGLOBAL (\S+)", text):
        return f"it asks for {wanted[1]}, and only tensors are read"
    if "weights_only" in text:
        return "it contains more than tensors"
    return " ".join((text.splitlines() or [type(error).__name__])[0].split())[:200]


def _tensors(found: Any) -> dict[str, Any]:
    """The tensors by name, below `state_dict` where there is one; everything else is dropped."""
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
