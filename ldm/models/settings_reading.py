"""Reading settings from plain mappings, and saying what each of them takes."""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ldm.diffusion.interval import Interval
from ldm.errors import UserError, nearest
from ldm.models.generation_settings import GenerationSettings
from ldm.models.setting_checks import Whole
from ldm.models.setting_limits import Pair

AnyGenerationSettings = TypeVar("AnyGenerationSettings", bound=GenerationSettings)


def parse_settings(
    given: Mapping[str, Any],
    kind: type[AnyGenerationSettings],
    *,
    where: str = "",
) -> AnyGenerationSettings:
    """Settings from a plain mapping; None is left open.

    Args:
        where: what names them in an error, such as a file and a line.

    Raises:
        UserError: the first value that is wrong, or a key that is unknown, with the nearest right one.
    """
    prefix = f"{where}: " if where else ""
    try:
        return kind.model_validate(dict(given))
    except UserError as error:
        raise UserError(f"{prefix}{error.what}", error.hint) from None
    except ValidationError as error:
        raise _explained(kind, given, error, prefix) from None


def _explained(
    kind: type[GenerationSettings], given: Mapping[str, Any], error: ValidationError, prefix: str
) -> UserError:
    errors = error.errors()
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        guess = nearest(name, kind.model_fields)
        hint = f"did you mean {guess!r}?" if guess else f"the settings are {', '.join(kind.model_fields)}"
        return UserError(f"{prefix}unknown setting {name!r}", hint)
    return UserError(f"{prefix}{name} is {given[name]!r}", f"it must be {expected(kind.model_fields[name])}")


def expected(field: FieldInfo) -> str:
    """The values that a field takes, such as `a whole number from 1 to 3`."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    kind: Any = field.annotation
    if get_origin(kind) is tuple:
        return f"a list of two {'whole' if plain_type(field) is Pair else 'finite'} numbers"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    low, high = bounds(field)
    finite = "a finite number" if kind is float and high is None else names[kind]
    limits = {
        (False, False): "",
        (True, False): f" of at least {low}",
        (False, True): f" of at most {high}",
        (True, True): f" from {low} to {high}",
    }
    return finite + limits[low is not None, high is not None]


def bounds(field: FieldInfo) -> tuple[Any, Any]:
    """The smallest and the largest value of a field, or None."""
    found = {key: getattr(each, key) for each in field.metadata for key in ("ge", "le") if hasattr(each, key)}
    return found.get("ge"), found.get("le")


def plain_type(field: FieldInfo) -> Any:
    """The type of a field without what pydantic checks."""
    if get_origin(field.annotation) is tuple:
        return Pair if get_args(field.annotation)[0] is Whole else Interval
    return field.annotation
