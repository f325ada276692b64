"""Settings as the arguments of a Python function, for `help`, completion and typer."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from ldm.models.generation_settings import GenerationSettings
from ldm.models.settings_reading import plain_type

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


def spell_out(function: AnyFunction, parameters: list[inspect.Parameter], *, before: str = "") -> AnyFunction:
    """Name the arguments that a function takes as `**`, for `help` and for typer.

    Args:
        before: the parameter in front of which they are put; by default they come last.
    """
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    place = next((index for index, each in enumerate(own) if each.name == before), len(own))
    named: Any = function
    together = [*own[:place], *parameters, *own[place:]]
    named.__signature__ = signature.replace(parameters=together)
    named.__annotations__ = {each.name: each.annotation for each in together} | {
        "return": signature.return_annotation
    }
    return function


def keyword_parameters(kind: type[GenerationSettings]) -> list[inspect.Parameter]:
    """The settings as keyword arguments of a Python function; None is left open."""
    return [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=plain_type(field) | None
        )
        for name, field in kind.model_fields.items()
    ]
