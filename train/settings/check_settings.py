"""Check a configuration in a second, before the libraries are loaded that a training program needs.

`python -m train.settings.check_settings PROGRAM CONFIG key=value ...`, run by `ldm train` before it starts the program.

A setting is defined beside the code that uses it, so importing all settings would import torch, diffusers and
transformers as well: 5 to 50 seconds. Settings need nothing of these libraries, only the code around them does. Here
they are replaced by placeholders, and no function is called that would use one.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from ldm.config import load_settings
from ldm.errors import UserError
from ldm.io.messages import say_error

PLACEHOLDERS = (
    "accelerate",
    "diffusers",
    "open_clip",
    "peft",
    "safetensors",
    "torch",
    "torchvision",
    "transformers",
)


class _AnyName(type):
    """Of a class that stands for anything: a type in an annotation, a base class, a decorator, a constant."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(name)

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __call__(cls, *args: Any, **options: Any) -> Any:
        return type.__call__(cls)


def _placeholder(name: str) -> Any:
    def decorate(self: Any, *args: Any, **options: Any) -> Any:
        return args[0] if args else self

    return _AnyName(name, (), {"__call__": decorate, "__getattr__": lambda self, name: _placeholder(name)})


class _Module(ModuleType):
    """A module of a library that is not loaded."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(name)


class Placeholders(MetaPathFinder, Loader):
    """Finds a placeholder for every module of `PLACEHOLDERS`."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The specification of a placeholder; None for other modules."""
        known = fullname.partition(".")[0] in PLACEHOLDERS
        return ModuleSpec(fullname, self, is_package=True) if known else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A package without files, whose submodules are found here as well."""
        module = _Module(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Check the settings: 2 if a key or value is wrong, which is reported in one line. For a process of its own."""
    program, config, *overrides = sys.argv[1:] if argv is None else argv
    sys.meta_path.insert(0, Placeholders())
    try:
        from .schema import settings_of

        kind = settings_of(program)
    except UserError:
        raise
    except Exception:  # the program itself, which starts next, reports what is wrong with the installation
        return 0
    try:
        load_settings(kind, Path(config), overrides)
    except UserError as error:
        say_error(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
