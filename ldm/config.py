"""Settings: defaults, then a YAML file, then `a.b=c` overrides.

Each kind of settings is a pydantic model, defined beside the code that uses it.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from ldm.errors import SYNONYMS, UserError, closest, nearest
from ldm.io.opening import read_text

MAX_YAML_BYTES = 2**20
MAX_YAML_DEPTH = 50
MAX_YAML_VALUES = 100_000
"""Maximum size, depth and number of values of a file of settings."""


class Settings(BaseModel):
    """A group of settings. Unknown keys are errors, and values cannot be changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def checked_by(check: Callable[[Any], None]) -> AfterValidator:
    """For `Annotated`: validate a setting with `check`, which raises UserError if it is wrong; None is not checked."""

    def checked(value: Any) -> Any:
        try:
            if value is not None:
                check(value)
        except UserError as error:
            raise ValueError(str(error)) from None  # pydantic reports it for this setting
        return value

    return AfterValidator(checked)


AnySettings = TypeVar("AnySettings", bound=Settings)


def load_settings(kind: type[AnySettings], path: Path | None, overrides: Sequence[str] = ()) -> AnySettings:
    """Settings from a file and overrides; the last value given for a key counts.

    Raises:
        UserError: the file is missing or is not a YAML mapping, an override is not `key=value`, or a key or value is
            wrong; the message names the key, the value and the nearest valid key.
    """
    tree = read_yaml(path) if path else {}
    for override in overrides:
        _apply(tree, override, _example(kind))
    return validate(kind, tree, where=str(path) if path else "settings")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that contains a mapping.

    Raises:
        UserError: the file is missing, is not UTF-8 or not YAML, or contains something other than a mapping.
    """
    try:
        text = read_text(path, MAX_YAML_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", "give the path of a YAML file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", "give a UTF-8 YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read ({error})", "give a UTF-8 YAML file") from None
    try:
        tree = parse_yaml(text)
    except YamlFault as fault:
        line = f", line {fault.line}" if fault.line else ""
        raise UserError(f"{path}{line} is not valid YAML{fault.reason}", "fix that line") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} contains no settings", "write `key: value` lines")
    return tree


class YamlFault(ValueError):
    """A text that is not YAML, or that is unreasonably large.

    Attributes:
        line: of the fault, or None.
        reason: more about it in parentheses, or empty.
    """

    def __init__(self, line: int | None, reason: str = "") -> None:
        self.line, self.reason = line, reason
        super().__init__(reason)


def parse_yaml(text: str) -> Any:
    """The value in a YAML text.

    Raises:
        YamlFault: it is not YAML, a date or a number in it does not exist, it is nested too deeply, or references in
            it stand for too many values.
    """
    import yaml  # late, so that `ldm --help` does without

    if (
        _bracket_depth(text) > MAX_YAML_DEPTH
    ):  # the parser takes a time that grows with the square of the depth
        raise YamlFault(None, " (it is nested too deeply)")
    try:
        # the loader in C, where it is installed, reads the same and is ten times as fast
        tree = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        raise YamlFault(where.line + 1 if where else None) from None
    except (ValueError, ArithmeticError, TypeError) as error:  # such as the date 2026-13-01
        raise YamlFault(None, f" ({error})") from None
    except RecursionError:
        raise YamlFault(None, " (it is nested too deeply)") from None
    _check_amount(tree)
    return tree


def _bracket_depth(text: str) -> int:
    """How deep brackets are nested; those in quotes count too, but there are pairs of them, or few."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


def _check_amount(tree: Any) -> None:
    """Count the values as if those that are referred to several times were written out."""
    waiting, count = [(tree, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > MAX_YAML_DEPTH or count > MAX_YAML_VALUES:
            raise YamlFault(None, " (it is nested too deeply, or repeats too much by references)")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += [(each, depth + 1) for each in inner]


def validate(kind: type[AnySettings], tree: Mapping[str, Any], where: str = "settings") -> AnySettings:
    """Validate a plain tree; the first mistake is raised as a UserError."""
    try:
        return kind.model_validate(dict(tree))
    except ValidationError as error:
        raise _explain(kind, error, where) from None


def to_yaml(settings: Settings) -> str:
    """The resolved settings as YAML; loading it gives equal settings."""
    import yaml

    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _example(kind: type[Settings]) -> str:
    return "num_steps=1000" if "num_steps" in kind.model_fields else f"{next(iter(kind.model_fields))}=VALUE"


def _apply(tree: dict[str, Any], override: str, example: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{override!r} is not a setting", f"write key=value, for example {example}")
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UserError(f"{key}: {parent!r} is a value, not a group", "name a setting inside a group")
    tree[leaf] = _parse(key, text)


def _parse(key: str, text: str) -> Any:
    try:
        return parse_yaml(text)
    except YamlFault:
        raise UserError(f"{key}={text} cannot be read", "quote the value") from None


def _explain(kind: type[Settings], error: ValidationError, where: str) -> UserError:
    errors = error.errors()
    # report a mistyped key first: it is often the reason why another is missing
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return UserError(f"{where}: unknown setting {'.'.join(path)!r}", _meant(kind, path))
    key = ".".join(_existing(kind, path))
    if first["type"] == "missing":
        return UserError(f"{where}: setting {key!r} is missing", f"write {key}: VALUE")
    wrong = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and isinstance(first["input"], Mapping | Settings):
        # settings that contradict each other: the message names them, so the whole group is not printed
        return UserError(f"{where}: {key}" if key else where, wrong)
    return UserError(f"{where}: {key} = {first['input']!r}", wrong)


def _meant(kind: type[BaseModel], path: Sequence[str]) -> str:
    """A hint for an unknown setting: one that exists, in its group or elsewhere."""
    beside, name = _keys_beside(kind, path), path[-1]
    elsewhere: dict[str, str] = {}
    for key in all_keys(kind):
        elsewhere.setdefault(key.rpartition(".")[2], key)  # the outermost of its name
        elsewhere.setdefault(key.replace(".", "_"), key)
    synonyms = SYNONYMS.get(name.lower(), ())
    guess = (
        next((each for each in synonyms if each in beside), None)
        or next((elsewhere[each] for each in (name, *synonyms) if each in elsewhere), None)
        or nearest(name, beside)
    )
    if guess is None and (close := closest(name, elsewhere)):
        guess = elsewhere[close]
    return f"did you mean {guess!r}?" if guess else f"valid keys here: {', '.join(beside)}"


def all_keys(kind: type[BaseModel]) -> list[str]:
    """The dotted keys of all settings, outer ones first; without those in lists of groups, which need an index."""
    return sorted(_keys_inside(kind, ""), key=lambda key: key.count("."))


def _keys_inside(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield f"{prefix}{name}"
        group = _settings_inside(field.annotation)
        if group is not None and get_origin(field.annotation) is not tuple:
            yield from _keys_inside(group, f"{prefix}{name}.")


def _existing(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The part of an error's path that names a setting: pydantic adds which alternative of a union it tried."""
    found: list[str] = []
    inner: type[BaseModel] | None = kind
    for part in path:
        if part.isdigit() and found:
            found.append(part)
        elif inner is not None and part in inner.model_fields:
            found.append(part)
            inner = _settings_inside(inner.model_fields[part].annotation)
    return found


def _keys_beside(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The valid keys of the group that contains the last part of `path`."""
    for part in path[:-1]:
        if part.isdigit():  # an index into a list of groups
            continue
        field = kind.model_fields.get(part)
        inner = _settings_inside(field.annotation) if field else None
        if inner is None:
            return []
        kind = inner
    return list(kind.model_fields)


def _settings_inside(annotation: Any) -> type[BaseModel] | None:
    """The Settings class in an annotation such as `Kind`, `Kind | None` or `tuple[Kind, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_settings_inside(part) for part in get_args(annotation))
    return next((kind for kind in found if kind), None)
