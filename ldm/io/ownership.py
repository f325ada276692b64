"""Which files of a folder this program wrote: nothing else is ever removed or replaced.

A folder that we write lists its files with their hashes, in `export.json` (an export) or `manifest.json` (all others).
What is not listed there belongs to the user. Models that earlier versions wrote have an `ldm.json` and no list; their
files are recognised by name.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from ldm.errors import UserError, warn
from ldm.io.files import MANIFEST, file_entry
from ldm.io.json_files import MAX_MODEL_JSON_BYTES

EXPORT_REPORT = "export.json"
INDEXES = (EXPORT_REPORT, MANIFEST)
"""The files that list what we wrote into a folder. One of them is written last."""

NOBODYS = re.compile(
    r"\.DS_Store|\._\.DS_Store|Thumbs\.db|desktop\.ini|lost\+found|\.Trash-\d+|\.snapshot|@eaDir"
)
"""What operating systems and file systems put into folders by themselves."""

_CARD = re.compile(r"README\.md|samples/[\w.-]+\.png")
"""The card of an export, which earlier versions did not list."""

_PART = r"(?:unet|denoiser|vae|autoencoder|text_encoder(?:_2)?|tokenizer(?:_2)?|scheduler|safety_checker)"
_EARLIER = re.compile(
    rf"(?:{_PART}/)?(?:[\w-]*config|model_index|ldm|adapter|state|data|best|comparison|vocab|tokenizer"
    r"|special_tokens_map|added_tokens)\.json"
    rf"|(?:{_PART}/)?(?:merges\.txt|bpe_merges\.txt\.gz|[\w.-]+\.txt\.gz)"
    rf"|(?:{_PART}/)?(?:diffusion_pytorch_model|model|pytorch_lora_weights|lora|embedding|adapter_model|weights|average"
    r"|averages|optimizer)[\w.-]*\.safetensors(?:\.index(?:\.\w+)?\.json)?"
)
"""The files of models and checkpoints that earlier versions wrote without a list."""


def check_replaceable(dest: Path) -> None:
    """Check that `dest` may be replaced: it is absent, empty, or holds only what we wrote, unchanged.

    Raises:
        UserError: it holds anything else; the message names it.
    """
    if not os.path.lexists(dest):
        return
    if not dest.is_dir():
        raise UserError(f"{dest} is not a folder that this program wrote", "move it away, or choose another")
    hint = "only what this program wrote is replaced; move it away, or choose another folder"
    if fault := next(_faults(dest), None):
        raise UserError(f"{dest} contains {fault}", hint)


def is_ours(dest: Path) -> bool:
    """Whether `check_replaceable` allows `dest` to be replaced."""
    try:
        check_replaceable(dest)
    except UserError:
        return False
    return True


def _faults(folder: Path) -> Iterator[str]:
    listed = listed_files(folder)
    if listed is None and not (folder / "ldm.json").is_file():
        yield from (f"{name}, which this program did not write" for name in _names(folder))
        return
    for name in _names(folder):
        if not _is_known(name, listed):
            yield f"{name}, which this program did not write"
        elif listed and listed.get(name) not in (None, file_entry(folder / name)):
            yield f"{name}, which has changed since this program wrote it"


def listed_files(folder: Path) -> dict[str, Any] | None:
    """The entries of `export.json` or `manifest.json` by path; None if there is neither, or it is damaged."""
    for index in INDEXES:
        try:
            if (folder / index).stat().st_size > MAX_MODEL_JSON_BYTES:
                continue
            found = json.loads((folder / index).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if index == EXPORT_REPORT and isinstance(found, dict):
            found = _of_export(found)
        if isinstance(found, dict) and found and all(map(_is_entry, found.values())):
            return {**found, index: None}
    return None


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and {"sha256", "size_bytes"} <= value.keys()


def _of_export(report: Mapping[str, Any]) -> dict[str, Any] | None:
    made_by, files, card = report.get("made_by"), report.get("files"), report.get("card_files", {})
    ours = isinstance(made_by, dict) and made_by.get("program") == "open-ldm"
    return {**files, **card} if ours and isinstance(files, dict) and isinstance(card, dict) else None


def _is_known(name: str, listed: Mapping[str, Any] | None) -> bool:
    if listed is None:
        return _EARLIER.fullmatch(name) is not None or name in INDEXES
    lists_no_card = EXPORT_REPORT in listed and "README.md" not in listed
    return name in listed or (lists_no_card and _CARD.fullmatch(name) is not None)


def _names(folder: Path) -> Iterator[str]:
    """The path of each file and link below a folder, except what operating systems put there."""
    for parent, folders, files in os.walk(folder):
        linked = [name for name in folders if (Path(parent) / name).is_symlink()]
        folders[:] = [name for name in folders if not NOBODYS.fullmatch(name)]
        for name in sorted([*files, *linked]):
            if not NOBODYS.fullmatch(name):
                yield (Path(parent) / name).relative_to(folder).as_posix()


def remove_written(folder: Path, kept: Path | None = None) -> None:
    """Remove a folder that this program wrote. Files that are not ours are kept in a folder beside it, with a warning.

    Unlike `check_replaceable`, this goes by names alone: a damaged checkpoint is removed, too. Of a link
    only the link itself is removed. A file that cannot be removed is a warning, because the important work is done.

    Args:
        kept: where files that are not ours go; default: `NAME.kept` beside the folder. A free name is chosen.
    """
    try:
        if folder.is_symlink():
            folder.unlink()
            return
        if not folder.is_dir():
            _keep(folder, kept or folder, "was not written by this program")
            return
        listed = listed_files(folder)
        foreign = [name for name in _names(folder) if not _is_known(name, listed)]
        # the list goes last, so that a call that is killed here leaves no files that look foreign
        ours = sorted(set(_names(folder)).difference(foreign), key=lambda name: name in INDEXES)
        for name in ours:
            (folder / name).unlink()
        if not foreign:
            shutil.rmtree(folder)
            return
        _remove_empty(folder)
        _keep(folder, kept or folder, f"contained {foreign[0]}, which this program did not write")
    except OSError as error:
        warn(f"{error.filename or folder} could not be removed ({error.strerror})")


def _remove_empty(folder: Path) -> None:
    for parent, _, _ in os.walk(folder, topdown=False):
        if parent != str(folder) and not os.listdir(parent):
            os.rmdir(parent)


def _keep(path: Path, place: Path, why: str) -> None:
    kept = next(each for each in numbered(place.with_name(f"{place.name}.kept")) if not os.path.lexists(each))
    path.rename(kept)
    warn(f"{place} {why}: it is now in {kept}")


def numbered(path: Path) -> Iterator[Path]:
    """`path`, `path-2`, `path-3` and so on."""
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in count(2))
