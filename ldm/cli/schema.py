"""`ldm schema`: every setting of a configuration, as a table or as the JSON schema for editors and other programs."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

NAME_WIDTH = 34


def schema(
    program: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROGRAM]",
            help="autoencoder, text_encoder or denoiser.  [default: all of them, told apart by `program:`]",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the JSON schema, for editors and other programs.")
    ] = False,
) -> None:
    """List the settings of a configuration, with their defaults and what they do.

    With the JSON schema, editors complete the keys of a YAML file and mark mistakes. Save it with
    `ldm schema --json > ldm.schema.json`.
    """
    from ldm.cli.programs import find_home
    from ldm.errors import unknown_name

    home = find_home()
    if program is not None and program not in home.programs:
        raise unknown_name("program", program, home.programs)
    for name in [program] if program or as_json else home.programs:
        text = _printed(name)
        if not as_json:
            width = max(NAME_WIDTH + 40, shutil.get_terminal_size().columns)
            text = "\n".join(table_lines(json.loads(text), width))
        typer.echo(text)


def _printed(program: str | None) -> str:
    """What the module of the settings prints: they are in another package, which must not be imported here."""
    from ldm.cli.programs import find_home

    home = find_home()
    command = [sys.executable, "-m", f"{home.package}.settings.schema", *([program] if program else [])]
    done = subprocess.run(
        command,
        env=home.environment(os.environ),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C in a terminal does not reach it
    )
    if done.returncode:
        raise typer.Exit(done.returncode)
    return done.stdout.rstrip("\n")


def table_lines(schema: Mapping[str, Any], width: int = 110) -> Iterator[str]:
    """The settings in a JSON schema, one below the other: name, type, default, and what it does."""
    program = schema["properties"]["program"].get("const") or schema["properties"]["program"].get("default")
    yield f"program: {program}"
    for key, field in _fields(schema, schema, ""):
        default = "required" if field.get("required") else f"default {json.dumps(field.get('default'))}"
        yield f"{key}  ({_kind(field, schema)}, {default})"
        about = " ".join(field.get("description", "").split())
        indent = " " * 4
        yield from textwrap.wrap(about, width, initial_indent=indent, subsequent_indent=indent)


def _fields(
    part: Mapping[str, Any], whole: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every setting by its dotted key, those of a group in its place."""
    for name, field in part["properties"].items():
        group = _group(field, whole)
        if group is None:
            yield f"{prefix}{name}", {**field, "required": name in part.get("required", [])}
        else:
            yield from _fields(group, whole, f"{prefix}{name}.")


def _group(field: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The group of settings that a field is; None for a single setting or a list."""
    choices = [field, *field.get("anyOf", []), *field.get("allOf", [])]
    names = [each["$ref"].rpartition("/")[2] for each in choices if "$ref" in each]
    groups = [whole["$defs"][name] for name in names]
    return next((group for group in groups if "properties" in group), None)


def _kind(field: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """The type of a setting in words, with its choices and bounds."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(each, whole) for each in field["anyOf"]))
    if "enum" in field:
        return "|".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if "$ref" in field:
        return _kind(whole["$defs"][field["$ref"].rpartition("/")[2]], whole)
    kinds = {
        "array": "list",
        "string": "text",
        "integer": "whole number",
        "null": "none",
        "object": "mapping",
    }
    kind = kinds.get(field.get("type", ""), field.get("type", "anything"))
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[key]}" for key, sign in signs.items() if key in field]
    return " ".join([kind, *bounds])
