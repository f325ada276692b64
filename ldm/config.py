"""Settings: defaults, then a YAML file, then `a.b=c` overrides.

The kinds of settings are pydantic models that stand beside their owner.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from ldm.errors import UserError, nearest


class Settings(BaseModel):
    """A group of settings. An unknown key is an error, and a value once validated does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def checked_by(check: Callable[[Any], None]) -> AfterValidator:
    """For `Annotated`: a setting that `check` refuses with a UserError is a faulty one; None is left unchecked."""

    def checked(value: Any) -> Any:
        try:
            if value is not None:
                check(value)
        except UserError as error:
            raise ValueError(str(error)) from None  # what pydantic takes for a fault of this setting
        return value

    return AfterValidator(checked)


AnySettings = TypeVar("AnySettings", bound=Settings)


def load_settings(kind: type[AnySettings], path: Path | None, overrides: Sequence[str] = ()) -> AnySettings:
    """Settings of one kind from a file and overrides, the later winning.

    Raises:
        UserError: the file is missing or no YAML mapping, an override is no `key=value`, or a key or value is
            wrong; the message names the key, the value and the nearest right key.
    """
    tree = read_yaml(path) if path else {}
    for override in overrides:
        _apply(tree, override)
    return validate(kind, tree, where=str(path) if path else "settings")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UserError: the file is missing, is no UTF-8 or no YAML, or holds something else than a mapping.
    """
    import yaml  # late, so that `ldm --help` does without

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", "give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})", "give a UTF-8 YAML file") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise UserError(f"{path}{line} is not valid YAML", "mend that line") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no settings", "write `key: value` lines")
    return tree


def validate(kind: type[AnySettings], tree: Mapping[str, Any], where: str = "settings") -> AnySettings:
    """A plain tree as validated settings; the first thing wrong is raised as a UserError."""
    try:
        return kind.model_validate(dict(tree))
    except ValidationError as error:
        raise _explain(kind, error, where) from None


def to_yaml(settings: Settings) -> str:
    """The resolved settings as YAML text, which loads back equal."""
    import yaml

    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{override!r} is no setting", "write key=value, for instance data.size_px=64")
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UserError(f"{key}: {parent!r} is a value, not a group", "name a setting inside a group")
    tree[leaf] = _parse(key, text)


def _parse(key: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{key}={text} cannot be read", "quote the value") from None


def _explain(kind: type[Settings], error: ValidationError, where: str) -> UserError:
    errors = error.errors()
    # a mistyped key is often why another is missing
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        choices = _keys_beside(kind, path)
        guess = nearest(path[-1], choices)
        hint = f"did you mean {guess!r}?" if guess else f"known here: {', '.join(choices)}"
        return UserError(f"{where}: unknown setting {key!r}", hint)
    if first["type"] == "missing":
        return UserError(f"{where}: setting {key!r} is missing", f"write {key}: VALUE")
    wrong = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and isinstance(first["input"], Mapping | Settings):
        # settings that do not go together: the message names them, and the whole group says nothing more
        return UserError(f"{where}: {key}" if key else where, wrong)
    return UserError(f"{where}: {key} = {first['input']!r}", wrong)


def _keys_beside(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The right keys of the group that holds the last part of `path`."""
    for part in path[:-1]:
        if part.isdigit():  # a place in a list of groups
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
