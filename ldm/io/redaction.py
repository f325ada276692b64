"""Remove private information from settings and texts: paths, tokens, and the names of this user and this computer."""

import getpass
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

PATH_KEYS = re.compile(r"(^|_)(path|dir|folder|file|base|masks|autoencoder|text_encoder)$")
"""Names of settings that are always treated as paths."""
SECRET_KEYS = re.compile(r"(^|_)(token|secret|password|api_key|key)$", re.IGNORECASE)
TOKENS = re.compile(
    r"\bhf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,}|\bhf_[A-Za-z0-9]{20,}"  # but not hf_transformers
    r"|\bapi_org_[A-Za-z0-9]{8,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{10,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{20,}"
    r"|\bwandb_v\d_\w{10,}|\bsk-[\w-]{16,}|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{35}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{12,}"
    r"|\beyJ[\w-]{8,}(?:\.[\w-]{8,}){2,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----|[\s\S]*)"
    r"|(?<=://)[^\s/:@\"'<>]*:[^\s/@\"'<>]+(?=@)"
)
"""Patterns of service tokens, private keys, and passwords in URLs."""
SECRET_VARIABLES = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|(^|_)KEY|API_?KEY|ACCESS_?KEY", re.IGNORECASE
)
_MAYBE = re.compile(r"\b[0-9a-f]{40}\b|\w+://[^\s/@]+@\S*")
"""Older Weights & Biases keys, which look like commit hashes, and user names in URLs."""
WHOLE_PATH = re.compile(r"\s*(~|\.{0,2}[/\\]|[A-Za-z]:[/\\])|\S*[/\\]\S*$")
"""Text that is a path as a whole: it starts like one, or has a separator and no space."""
PATHS = re.compile(r"(?<![\w.~/\\<])(?:~|\.{1,2}|[A-Za-z]:)?[/\\]+[^\s\"',;]+|\w+://\S+")
ORDINARY_NAMES = {"root", "user", "admin", "localhost"}
"""User and host names that do not identify anyone."""

_SEPARATORS = re.compile(r"[/\\]+")
_HOMES = ("home", "users")


def redacted(
    value: Any, key: str = "", names: Sequence[str] | None = None, *, name_paths: bool = False
) -> Any:
    """A tree of settings with private parts replaced by `<path>`, `<secret>` and `<name>`.

    Private are: paths (Path objects, settings named like paths, and text that looks like a path); tokens (text that
    looks like one, and values of environment variables named like one); URLs; the names of this user and this computer.

    Args:
        key: the setting that `value` belongs to.
        names: names of users and computers; by default this machine's.
        name_paths: keep the last part of each path, as the name of the file or folder.
    """
    names = own_names() if names is None else names
    if isinstance(value, Mapping):
        return {str(k): redacted(inner, str(k), names, name_paths=name_paths) for k, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redacted(inner, key, names, name_paths=name_paths) for inner in value]
    if isinstance(value, PurePath):
        value, key = str(value), "path"
    return _redacted_text(value, key, names, name_paths) if isinstance(value, str) else value


def redacted_prose(text: str, names: Sequence[str] | None = None) -> str:
    """A text without tokens and names, with absolute paths reduced to their last part; URLs stay."""

    def shortened(found: re.Match[str]) -> str:
        return found[0] if "://" in found[0] else path_name(found[0])

    text = PATHS.sub(shortened, _without_secrets(text))
    return _without_names(text, own_names() if names is None else names)


def path_name(path: str) -> str:
    """The last part of a path; `<path>` for a home folder (it names a user), a URL, or a path without a name."""
    parts = [part for part in _SEPARATORS.split(path.strip()) if part not in ("", ".", "..")]
    is_home = len(parts) > 1 and parts[-2].lower() in _HOMES
    if not parts or is_home or "://" in path or parts[-1].startswith("~") or parts[-1].endswith(":"):
        return "<path>"
    return parts[-1]


def _redacted_text(text: str, key: str, names: Sequence[str], name_paths: bool) -> str:
    if SECRET_KEYS.search(key):
        return "<secret>"
    text = _without_secrets(text)
    if PATH_KEYS.search(key) or WHOLE_PATH.match(text):
        return _without_names(path_name(text), names) if name_paths else "<path>"
    text = PATHS.sub(lambda found: path_name(found[0]) if name_paths else "<path>", text)
    return _without_names(text, names)


def without_secrets(text: str, more: Iterable[str] = (), *, mark: str = "<secret>") -> str:
    """A text with `mark` in place of `TOKENS`, of secrets in environment variables, and of `more`."""
    for secret in sorted([*more, *environment_secrets()], key=len, reverse=True):
        text = text.replace(secret, mark) if secret else text
    return TOKENS.sub(mark, text)


def _without_secrets(text: str) -> str:
    return without_secrets(_MAYBE.sub("<secret>", text))


def _without_names(text: str, names: Sequence[str]) -> str:
    for name in names:
        text = re.sub(
            rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "<name>", text, flags=re.IGNORECASE
        )
    return text


def environment_secrets() -> list[str]:
    """The values of environment variables with names such as HF_TOKEN."""
    return [v for name, v in os.environ.items() if SECRET_VARIABLES.search(name) and len(v) >= 8]


def own_names() -> list[str]:
    """The names of this user and this computer, without ordinary ones such as `root`."""
    host = socket.gethostname()
    found = {host, host.partition(".")[0], Path.home().name}
    with suppress(OSError, KeyError):  # the user may have no name
        found.add(getpass.getuser())
    return sorted((n for n in found if len(n) > 1 and n.lower() not in ORDINARY_NAMES), key=len, reverse=True)
