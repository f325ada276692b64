"""The pages of settings, from the pydantic models that check them."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from ldm.models.generation_settings import GenerationSettings
from train.settings.schema import SETTINGS, settings_of

from .markdown import code, page, table

HEAD = ("setting", "type", "default", "description")
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
NAMES = {
    NoneType: "null",
    Path: "path",
    str: "string",
    int: "integer",
    float: "number",
    bool: "true or false",
}


def training_page() -> str:
    """The settings of every training program, one table each."""
    intro = (
        "The keys of a training configuration. On the command line they are written with dots: "
        "`ldm train photos.yaml optim.learning_rate=5e-5`. `ldm schema` prints the same as a JSON schema for editors."
    )
    parts = [part for name in SETTINGS for part in (f"## {name}", model_table(settings_of(name)))]
    return page("Training settings", intro, *parts)


def generation_page() -> str:
    """The settings of an image."""
    intro = (
        "The settings of an image: options of `ldm generate` (with hyphens), keys of a prompt file, arguments of "
        "`Pipeline.generate`, and entries of the record in a PNG. What is left out comes from the model's defaults."
    )
    return page("Generation settings", intro, model_table(GenerationSettings))


def model_table(kind: type[BaseModel]) -> str:
    return table(HEAD, rows_of(kind))


def rows_of(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, ...]]:
    """A row for each setting, those of nested models under their full keys."""
    for name, field in kind.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        nested = models_in(field.annotation)
        text = field.description or (first_sentence(nested[0]) if nested else "")
        yield code(key), type_of(field), default_of(field, bool(nested)), text
        for below in nested:
            yield from rows_of(below, f"{key}.N." if is_list(field.annotation) else f"{key}.")


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models in a type."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


def first_sentence(kind: type[BaseModel]) -> str:
    return (inspect.getdoc(kind) or "").partition("\n\n")[0]


def is_list(annotation: Any) -> bool:
    return get_origin(annotation) in (tuple, list) or any(is_list(inner) for inner in get_args(annotation))


def type_of(field: FieldInfo) -> str:
    """A setting's type with its bounds, such as `integer > 0, or null`."""
    bounds = [
        f"{sign} {number(value)}"
        for rule in field.metadata
        for name, sign in BOUNDS.items()
        if (value := getattr(rule, name, None)) is not None
    ]
    inner = get_args(field.annotation)
    if NoneType in inner:
        rest = " or ".join(name_of(each) for each in inner if each is not NoneType)
        return " ".join([rest, ", ".join(bounds)]).strip() + ", or null"
    return " ".join([name_of(field.annotation), ", ".join(bounds)]).strip()


def number(value: float) -> str:
    """A bound; the largest seed as a power, which says more than its digits."""
    return "2^63" if value == 2**63 else str(value)


def name_of(annotation: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return name_of(inner[0])
    if origin is Literal:
        return " or ".join(code(str(value)) for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(name_of(each) for each in inner)
    if origin is tuple and Ellipsis not in inner:
        return "[" + ", ".join(map(name_of, inner)) + "]"
    if origin in (tuple, list):
        return f"list of {name_of(inner[0])}"
    if origin is not None:
        return " to ".join(map(name_of, inner))  # a mapping
    if annotation in NAMES:
        return NAMES[annotation]
    return "section" if models_in(annotation) else getattr(annotation, "__name__", str(annotation))


def default_of(field: FieldInfo, is_section: bool) -> str:
    """A setting's default as YAML has it; `required` without one."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or (is_section and value):
        return ""
    return code(json.dumps(to_jsonable_python(value), ensure_ascii=False))
