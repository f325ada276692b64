"""Remove private information from settings and texts: paths, tokens, and the names of this user and this computer."""

import getpass
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

PATH_KEYS = re.compile(r"(^|_)(path|dir|folder|file|base|masks|autoencoder|text_encoder)$")
"""Names of settings that are always treated as paths."""
SECRET_KEYS = re.compile(r"(^|_)(token|secret|password|api_key|key)$", re.IGNORECASE)
_START = r"(?<![A-Za-z0-9])"  # not \b: in a file's name, an underscore separates too
TOKENS = re.compile(
    rf"{_START}(?:hf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{{8,}}|hf_[A-Za-z0-9]{{20,}}"  # but not hf_transformers
    r"|api_org_[A-Za-z0-9]{8,}"
    r"|gh[pousr]_[A-Za-z0-9]{10,}|github_pat_\w{16,}|glpat-[\w-]{20,}"
    r"|wandb_v\d_\w{10,}|sk-[\w-]{16,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{35}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{12,}"
    r"|eyJ[\w-]{8,}(?:\.[\w-]{8,}){2,})"
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
ORDINARY_NAMES = frozenset({
    "root", "user", "users", "admin", "localhost", "ubuntu", "debian", "fedora", "centos", "ec2-user", "azureuser",
    "gcp", "docker", "vagrant", "jovyan", "runner", "default", "guest", "dev", "test", "build", "worker", "node", "gpu",
    "server", "desktop", "laptop", "colab", "kaggle", "workspace", "pi", "emoji", "shapes", "model", "models", "data",
    "image", "images", "sample", "samples", "training", "lora", "style", "photo", "photos",
})  # fmt: skip
"""User and host names that do not identify anyone."""
EMAIL = re.compile(r"\b[\w.+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b")
MARKS = {"a token": "<secret>", "an absolute path": "<path>", "an e-mail address": "<e-mail>"}
"""What `without_leaks` puts in place of each kind of `leak_patterns`."""

_ROOTS = """
bin content data dev etc gpfs home kaggle lustre media mnt nfs opt private proc root run scratch shared srv sys tmp
Users usr var Volumes work workspace workspaces
"""
_SEPARATORS = re.compile(r"[/\\]+")
_HOMES = ("home", "users")


def redacted(
    value: Any, key: str = "", names: Sequence[str] | None = None, *, name_paths: bool = False
) -> Any:
    """A tree of settings with private parts replaced by `<path>`, `<secret>` and `<name>`.

    Private are: paths (Path objects, settings named like paths, and text that looks like a path); tokens (text that
    looks like one, and values of environment variables named like one); URLs; e-mail addresses; the names of this
    user and this computer.

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
        is_url = "://" in found[0] and not found[0].startswith("file:")
        return found[0] if is_url else path_name(found[0].removeprefix("file:"))

    text = PATHS.sub(shortened, _without_secrets(text))
    return _without_names(text, own_names() if names is None else names)


def public_text(text: str, names: Sequence[str] | None = None) -> str:
    """A text that may leave this computer: `redacted_prose` of it, without anything that a push refuses."""
    text = EMAIL.sub(MARKS["an e-mail address"], text)  # before names, which would hide half of one
    return without_leaks(redacted_prose(text, names))


def public_file_name(name: str) -> str:
    """The name of a file that may leave this computer: private parts become "secret", "name" and so on."""
    return re.sub(r"<([a-z-]+)>", r"\1", public_text(name))


def private_names(public: str | None = None) -> list[str]:
    """`own_names` without those in a text that is public anyway, such as the repository that a model goes to."""
    words = re.split(r"[^a-z0-9]+", (public or "").lower())
    return [name for name in own_names() if name.lower() not in words]


def leak_patterns(secrets: Iterable[str] = ()) -> Mapping[str, re.Pattern[str]]:
    """What no file that leaves this computer may contain, by kind.

    Unlike `redacted_prose`, these patterns do not match any ordinary text, such as a vocabulary or a configuration.

    Args:
        secrets: further texts to search for.
    """
    known = (secret for secret in (*secrets, *environment_secrets()) if secret)
    here = [entry.name for entry in Path("/").iterdir() if len(entry.name) > 1]
    return _leak_patterns(tuple(known), tuple(sorted({*_ROOTS.split(), *here, *Path.home().parts[1:2]})))


@lru_cache(maxsize=16)
def _leak_patterns(secrets: tuple[str, ...], roots: tuple[str, ...]) -> Mapping[str, re.Pattern[str]]:
    literal = "|".join(map(re.escape, sorted(secrets, key=len, reverse=True)))
    above = "|".join(map(re.escape, roots))
    return {
        "a token": re.compile(f"{literal}|{TOKENS.pattern}" if literal else TOKENS.pattern),
        "an absolute path": re.compile(
            rf"(?<![\w./\\~])/(?:{above})/[\w.@+-][^\s\"'`<>|)]*|\bfile:/+[^\s\"'`<>|)]+"
            r"|(?<![A-Za-z])[A-Za-z]:\\+(?:Users|Documents|Windows|Program|home|data|temp|tmp)[^\s\"'`<>|)]*"
        ),
        "an e-mail address": EMAIL,
    }


def without_leaks(text: str) -> str:
    """A text with `MARKS` in place of `leak_patterns`; everything else stays."""
    for kind, pattern in leak_patterns().items():
        if pattern.search(unescaped(text)) and not pattern.search(_blanked(text)):
            text = text.replace("\\/", "/")
        for found in reversed([*pattern.finditer(_blanked(text))]):
            text = text[: found.start()] + MARKS[kind] + text[found.end() :]
        text = pattern.sub(MARKS[kind], text)
    return text


def unescaped(text: str) -> str:
    """JSON inside a text without its escapes: a backslash and an n hide the start of a path."""
    return re.sub(r"\\+/", "/", _blanked(text))


def _blanked(text: str) -> str:
    """A text of the same length without the escapes of JSON, except those of slashes."""
    return re.sub(r"\\+[nrt\"']", lambda escape: " " * len(escape[0]), text)


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
    text = EMAIL.sub(MARKS["an e-mail address"], _without_secrets(text))
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
    pattern = names_pattern(names)
    return pattern.sub("<name>", text) if pattern else text


def names_pattern(names: Sequence[str]) -> re.Pattern[str] | None:
    """Matches any of these names as a word; None if there are none."""
    words = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.compile(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])", re.IGNORECASE) if words else None


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
