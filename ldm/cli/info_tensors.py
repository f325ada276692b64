"""`ldm info --tensors`: what is in safetensors files, read from their headers."""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.io.messages import count, shown
from ldm.io.safetensors_header import read_header


def describe_tensors(model: str) -> dict[str, Any]:
    """The tensors and the metadata of each file, ready for JSON.

    Args:
        model: a safetensors file, a folder with some, or a model that `ldm info` finds.

    Raises:
        UserError: there is none, or one is damaged.
    """
    root = _place(model)
    files = [root] if root.is_file() else sorted(root.rglob("*.safetensors"))
    if not files:
        raise UserError(f"{root}: no safetensors file", "name a file or a folder with some")
    return {path.name if path == root else path.relative_to(root).as_posix(): _file(path) for path in files}


def _place(model: str) -> Path:
    path = Path(model).expanduser()
    if path.exists():
        return path
    from ldm.models.loading.source import find_model

    return find_model(model)[0]


def _file(path: Path) -> dict[str, Any]:
    header = read_header(path)
    tensors = {
        name: {"dtype": entry.dtype, "shape": list(entry.shape)}
        for name, entry in sorted(header.tensors.items())
    }
    return {"metadata": dict(header.metadata), "tensors": tensors}


def tensor_lines(files: Mapping[str, Any]) -> Iterator[str]:
    """`describe_tensors` as text; names and metadata are escaped."""
    for name, file in files.items():
        tensors = file["tensors"]
        numbers = sum(prod(tensor["shape"]) for tensor in tensors.values())
        yield f"{shown(name)}: {count(len(tensors), 'tensor')}, {count(numbers, 'value')}"
        for key, value in file["metadata"].items():
            yield f"  metadata {shown(key)}: {shown(str(value))}"
        width = max((len(shown(each)) for each in tensors), default=0) + 2
        for each, tensor in tensors.items():
            shape = " x ".join(map(str, tensor["shape"])) or "one number"
            yield f"  {shown(each):{width}}{tensor['dtype']:6}{shape}"
