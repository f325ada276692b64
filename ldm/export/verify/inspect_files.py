"""Inspecting the files of a model's folder: unknown files, pickles, code, links and broken JSON."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ldm.export.model_files import IMAGE, PART_FILES, PART_WEIGHTS, PARTS, TOP_FILES
from ldm.export.verify.finding import Finding, caught
from ldm.io.files import MANIFEST
from ldm.io.json_files import MAX_MODEL_JSON_BYTES, read_json
from ldm.io.opening import open_file
from ldm.models.loading.folder import PICKLES, check_keys

OTHER_PICKLES = (".joblib", ".dill", ".npy", ".npz", ".h5", ".keras")
CODE = (
    ".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".cmd", ".ps1", ".js", ".ipynb", ".jar",
)  # fmt: skip
CUSTOMARY = re.compile(
    r"(README|LICENSE|LICENCE|NOTICE|USE_POLICY)(\.\w+)?|\.gitattributes|\.gitignore", re.IGNORECASE
)
LARGEST_TREE = 10_000
PICKLE_START = re.compile(rb"\x80[\x02-\x05]")
"""The first bytes of a pickle of protocol 2 to 5, whatever its file is called."""


def inspect_files(folder: Path, paths: Iterable[Path] | None = None) -> Iterator[Finding]:
    """Findings about a folder's files, or about some of them; links out of it are not followed, and nothing is run."""
    for count, path in enumerate(tree(folder) if paths is None else paths):
        if count == LARGEST_TREE:
            yield Finding("warning", ".", f"more than {LARGEST_TREE:,} files; the rest was not checked")
            return
        yield from _inspect(folder, path, path.relative_to(folder).as_posix())


def tree(folder: Path) -> Iterator[Path]:
    """Every file and link below a folder, sorted by name; linked folders are not entered."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        linked = [name for name in folders if (Path(parent) / name).is_symlink()]
        yield from (Path(parent) / name for name in sorted([*files, *linked]))


def _inspect(folder: Path, path: Path, name: str) -> Iterator[Finding]:
    if path.is_symlink() and not _within(path, folder):
        yield Finding("warning", name, "a link to a place outside this folder")
    if not path.is_file():
        what = "a linked folder, not checked" if path.is_dir() else "not a regular file"
        yield Finding("warning" if path.is_dir() else "error", name, what)
    elif _is_pickle(path):
        yield Finding("warning", name, "a pickle: loading it can run code. We never read it")
    elif path.suffix.lower() in CODE:
        yield Finding("warning", name, "code. We do not run it")
    elif path.suffix.lower() == ".json":
        yield from caught(folder, name, lambda: _check_json(path))
    if path.is_file() and not _belongs(path, name):
        yield Finding("note", name, "not part of a model; we do not read it")


def _within(path: Path, folder: Path) -> bool:
    """Whether a link stays in the folder, or in the Hub's cache, which keeps the files of a snapshot beside it."""
    inside = folder.resolve()
    roots = [inside, inside.parents[1] / "blobs"] if inside.parent.name == "snapshots" else [inside]
    return any(path.resolve().is_relative_to(root) for root in roots)


def _is_pickle(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in (*PICKLES, *OTHER_PICKLES):
        return not (suffix == ".bin" and path.with_suffix(".xml").is_file())  # OpenVINO's weights
    if suffix == ".safetensors":  # begins with a number, which can look like anything
        return False
    with open_file(path) as file:
        return PICKLE_START.match(file.read(2)) is not None


def _check_json(path: Path) -> None:
    value = read_json(path, max_bytes=MAX_MODEL_JSON_BYTES)
    if path.name.endswith(("config.json", "adapter.json", "ldm.json", "model_index.json")):
        check_keys(path, value)


def _belongs(path: Path, name: str) -> bool:
    """Whether a file belongs to a model."""
    if "/" not in name:
        known = name in (*TOP_FILES, MANIFEST) or path.suffix == ".safetensors"
        return known or CUSTOMARY.fullmatch(name) is not None or IMAGE.fullmatch(name) is not None
    part, _, inner = name.partition("/")
    if part in PARTS:
        return inner in PART_FILES or PART_WEIGHTS.fullmatch(inner) is not None
    return IMAGE.fullmatch(name) is not None
