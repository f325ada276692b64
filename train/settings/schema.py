"""The JSON schema of the programs' settings: `python -m train.settings.schema [PROGRAM]`, run by `ldm schema`."""

import json
import os
import sys
from collections.abc import Sequence
from functools import reduce
from importlib import import_module
from operator import or_
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from ldm.errors import UserError, unknown_name
from ldm.io.messages import say_error

from .shared import TrainSettings

SETTINGS = {
    "autoencoder": "AutoencoderSettings",
    "text_encoder": "TextEncoderSettings",
    "denoiser": "DenoiserSettings",
}
"""Each program's module and the class of its settings."""


def settings_of(program: str) -> type[TrainSettings]:
    """The class of a program's settings.

    Raises:
        UserError: the program is unknown.
    """
    if program not in SETTINGS:
        raise unknown_name("program", program, SETTINGS)
    kind: type[TrainSettings] = getattr(import_module(f"..{program}", __package__), SETTINGS[program])
    return kind


def schema(program: str | None = None) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of one program's settings, or of all programs', distinguished by `program:`."""
    if program is None:
        kinds = [settings_of(name) for name in SETTINGS]
        union: Any = Annotated[reduce(or_, kinds), Field(discriminator="program")]
        adapter: TypeAdapter[Any] = TypeAdapter(union)
    else:
        adapter = TypeAdapter(settings_of(program))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **adapter.json_schema()}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the schema; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        print(
            json.dumps(schema(arguments[0] if arguments else None), indent=2, ensure_ascii=False), flush=True
        )
    except UserError as error:
        say_error(str(error))
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
