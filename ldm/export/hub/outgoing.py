"""The files of a folder that may be sent to the Hub: only those with known names.

A model's files have known names. Nothing else is sent: no optimizer state, cache, dataset or log, and no link, which
could lead anywhere, except those of the Hub's own cache. Images are sent only if the model card shows them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError
from ldm.export.model_files import CARD, IMAGE, PART_FILES, PART_WEIGHTS, PARTS, REPORT, TOP_FILES
from ldm.io.files import MANIFEST
from ldm.io.json_files import read_object


@dataclass(frozen=True)
class OutgoingFile:
    """A file that may be sent; `name` is its path in the folder, with slashes."""

    name: str
    path: Path
    size_bytes: int


@dataclass(frozen=True)
class Outgoing:
    """The files of a folder that are sent, and the names of the others; a folder's name ends in a slash."""

    files: tuple[OutgoingFile, ...]
    left_out: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def list_outgoing(folder: Path) -> Outgoing:
    """The files of a model's folder that may be sent, sorted by name.

    Raises:
        UserError: it is not a folder, is a training run or a checkpoint, or the model is incomplete.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder", "name one that `ldm export` wrote")
    _refuse_run(folder)
    names = sorted({name for name in _candidates(folder) if _lies_inside(folder, name)})
    _check_complete(folder, names)
    files = tuple(OutgoingFile(name, folder / name, (folder / name).stat().st_size) for name in names)
    return Outgoing(files, tuple(_left_out(folder, set(names))))


def _refuse_run(folder: Path) -> None:
    is_run = (folder / "config.yaml").exists() and not (folder / "model_index.json").exists()
    if is_run or (folder / "state.json").exists():
        what = "training run" if is_run else "checkpoint"
        raise UserError(f"{folder} is a {what}, not a model to send", "export it: ldm export RUN DEST")


def _candidates(folder: Path) -> Iterator[str]:
    """Known names; not all of them exist."""
    yield from TOP_FILES
    yield from _single_files(folder)
    for part in PARTS:
        for path in (folder / part).iterdir() if (folder / part).is_dir() else ():
            if path.name in PART_FILES or PART_WEIGHTS.fullmatch(path.name):
                yield f"{part}/{path.name}"
    if (folder / CARD).is_file():
        shown = (folder / CARD).read_text(encoding="utf-8", errors="replace")
        yield from set(IMAGE.findall(shown))


def _single_files(folder: Path) -> Iterator[str]:
    """Single files: named like the folder, or listed in our export's report."""
    yield f"{folder.resolve().name}.safetensors"
    if (folder / REPORT).is_file():
        written = read_object(folder / REPORT).get("files", {})
        yield from (name for name in written if re.fullmatch(r"[\w. -]+\.safetensors", name))


def _lies_inside(folder: Path, name: str) -> bool:
    """Whether the file exists in the folder itself, not through a link or `..`.

    In the Hub's cache, `snapshots/REVISION/` has links to files in `blobs/`; these count as its own.
    """
    path, inside = folder / name, folder.resolve()
    if not path.is_file():
        return False
    if path.resolve() == inside / name:
        return True
    in_folder = path.parent.resolve() / path.name == inside / name
    return in_folder and path.resolve().parent == _blobs(inside)


def _blobs(folder: Path) -> Path | None:
    """Where the Hub's cache keeps the files of a snapshot; None for other folders."""
    blobs = folder.parent.parent / "blobs"
    is_snapshot = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return blobs if is_snapshot and not blobs.is_symlink() else None


def _check_complete(folder: Path, names: list[str]) -> None:
    """Refuse a model that no program could load.

    Raises:
        UserError: there are no weights, or a part listed in model_index.json has no files.
    """
    if not any(name.endswith((".safetensors", "openvino_model.xml")) for name in names):
        if linked := next((path for path in folder.rglob("*.safetensors") if path.is_symlink()), None):
            raise UserError(
                f"{linked} is a link to another place, which is not sent",
                "copy the folder with its files: cp -rL",
            )
        raise UserError(f"{folder} has no weights to send", "name a folder that `ldm export` wrote")
    for name in names:
        if name.endswith("openvino_model.xml") and name.replace(".xml", ".bin") not in names:
            raise UserError(f"{folder / name} has no .bin file beside it", "the model is incomplete")
    listed = read_object(folder / "model_index.json") if "model_index.json" in names else {}
    for part, value in listed.items():
        is_used = isinstance(value, list) and value[-1:] != [None]
        # OpenVINO's vae is in vae_encoder and vae_decoder
        if is_used and not any(name.startswith((f"{part}/", f"{part}_")) for name in names):
            raise UserError(
                f"{folder / part} has no file to send", "the model is incomplete; export it again"
            )


def _left_out(folder: Path, chosen: set[str]) -> Iterator[str]:
    """Names of the other files; a folder of which nothing is sent is listed once."""
    for entry in sorted(path for path in folder.iterdir() if path.name != MANIFEST):
        is_folder = entry.is_dir() and not entry.is_symlink()
        if is_folder and any(name.startswith(f"{entry.name}/") for name in chosen):
            below = (path for path in sorted(entry.rglob("*")) if not path.is_dir() or path.is_symlink())
            names = (path.relative_to(folder).as_posix() for path in below)
            yield from (name for name in names if name not in chosen)
        elif entry.name not in chosen:
            yield entry.name + "/" * is_folder
