"""The border that everything passes that leaves in an export: no text in any of its files is private.

JSON, the text of PNGs, the metadata of safetensors and the card are cleaned here. Files that are nothing but data to a
program, such as a vocabulary, are searched by `ldm.export.hub.leaks`; what cannot be cleaned is refused by its name.
A push searches in the same way.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.export.hub.leaks import is_hub_id, is_thumbnail, parsed, scan
from ldm.export.hub.outgoing import OutgoingFile
from ldm.export.model_files import CARD, RECORDS, is_setting, is_vocabulary
from ldm.io.files import write_bytes, write_json
from ldm.io.image_metadata import XMP_KEY
from ldm.io.json_files import MAX_MODEL_JSON_BYTES, read_json
from ldm.io.opening import read_text
from ldm.io.png import read_texts, replace_texts
from ldm.io.redaction import private_names, public_text, without_leaks
from ldm.io.safetensors_header import read_header
from ldm.io.safetensors_writer import replace_metadata
from ldm.io.xmp import NAMESPACES, xmp_packet, xmp_properties
from ldm.pipeline.record import REDACTED, infotext

PLACES = ("_name_or_path", "name_or_path")
"""Keys of transformers' configurations for where a component was loaded from."""


def clean_folder(folder: Path, *, repo_id: str | None = None) -> list[str]:
    """Clean every file of an export, and return the names of those that changed.

    Numbers are never touched. An export without anything private keeps all its bytes.

    Args:
        repo_id: USER/NAME on the Hub, if the export goes there: these words are public.

    Raises:
        UserError: a file has something private that cannot be removed from it, such as a tensor's name.
    """
    paths = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    names = private_names(repo_id)
    changed = [name for name, path in paths.items() if _clean(name, path, names)]
    files = [OutgoingFile(name, path, path.stat().st_size) for name, path in paths.items()]
    for leak in scan(files, names=names):
        raise UserError(f"the export would contain something private: {leak}", "remove it from the model")
    return changed


def public_record(record: Mapping[str, Any], names: Sequence[str] | None = None) -> dict[str, Any]:
    """A record of ours without anything private in it; the values of settings stay.

    Args:
        names: of users and computers; by default this machine's.
    """
    names = private_names() if names is None else names
    return {key: _public(value, key, names) for key, value in record.items()}


def _clean(name: str, path: Path, names: Sequence[str]) -> bool:
    """Whether the file had to be changed."""
    if path.suffix == ".safetensors":
        return _clean_safetensors(path, names)
    if path.suffix == ".png":
        return _clean_png(path, names)
    if path.suffix == ".json" and not is_vocabulary(name):
        return _clean_json(name, path, names)
    return name == CARD and _clean_card(path)


def _clean_json(name: str, path: Path, names: Sequence[str]) -> bool:
    before = read_json(path, max_bytes=MAX_MODEL_JSON_BYTES)
    is_record = name in RECORDS and isinstance(before, Mapping)
    after: Any = public_record(before, names) if is_record else _without_places(_public(before, "", None))
    if after != before:
        write_json(path, after)
    return bool(after != before)


def _without_places(config: Any) -> Any:
    """A configuration without the folder that it was read from."""
    if isinstance(config, Mapping):
        return {key: _without_places(value) for key, value in config.items() if key not in PLACES}
    return config


def _clean_card(path: Path) -> bool:
    """The card's values are cleaned where it is written; nothing may be left of secrets, paths and addresses."""
    before = read_text(path, errors="replace")
    after = without_leaks(before)
    if after != before:
        write_bytes(path, after.encode())
    return after != before


def _clean_safetensors(path: Path, names: Sequence[str]) -> bool:
    before = read_header(path).metadata
    after = {key: _public_json(value, key, names) for key, value in before.items()}
    if after != before:
        replace_metadata(path, after)
    return after != before


def _clean_png(path: Path, names: Sequence[str]) -> bool:
    before = read_texts(path)
    after = {key: _public_json(text, key, names) for key, text in before.items()}
    if after.get(XMP_KEY) != before.get(XMP_KEY):
        after[XMP_KEY] = _public_xmp(before[XMP_KEY], names)
    if isinstance(record := parsed(after.get("ldm", "")), dict):  # "parameters" repeats it in another form
        if after["ldm"] != before["ldm"]:
            after["ldm"] = json.dumps({**record, REDACTED: True}, sort_keys=True)
        after["parameters"] = (
            infotext(record) if after["ldm"] != before["ldm"] else before.get("parameters", "")
        )
    if after != before:
        replace_texts(path, after)
    return after != before


def _public_xmp(packet: str, names: Sequence[str]) -> str:
    """A packet of the same properties, as far as they are known here, without anything private."""
    known = {n: v for n, v in xmp_properties(packet.encode()).items() if n.partition(":")[0] in NAMESPACES}
    return xmp_packet({name: _public(value, name, names) for name, value in known.items()})


def _public_json(text: str, key: str, names: Sequence[str]) -> str:
    """A text without anything private; JSON stays JSON."""
    value = parsed(text)
    if value is None:
        public: str = _public(text, key, names)
        return public
    after = _public(value, key, names)
    return text if after == value else json.dumps(after, sort_keys=True)


def _public(value: Any, key: str, names: Sequence[str] | None) -> Any:
    """A value without anything private.

    Args:
        key: the value's name, which distinguishes settings from texts that people write.
        names: to remove from such texts; None for a configuration, which has none.
    """
    if isinstance(value, Mapping):
        return {str(name): _public(inner, str(name), names) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_public(inner, key, names) for inner in value]
    if not isinstance(value, str) or is_thumbnail(value) or is_hub_id(value):
        return value
    return without_leaks(value) if names is None or is_setting(key) else public_text(value, names)
