"""What an export format consists of: a function that exports, and one that says how to use the export."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import cast

from ldm.errors import UserError
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import ExportSource
from ldm.export.formats.formats import FORMATS
from ldm.export.verify.compare import Verdict
from ldm.models.adapters.folder import LORA_FILE
from ldm.models.loading.folder import weights_variant

BASE_PLACEHOLDER = "BASE"
"""Stands for the base model in examples if it is not known."""

ReadBack = Callable[[], tuple[Verdict, ...]]
"""Has other libraries read the export; may be called more than once."""

Exporter = Callable[[ExportSource, Path, ExportOptions, str], ReadBack]
"""`exporter(source, folder, options, name)` writes a model into an empty folder.

`name` is the name of the final folder; a single file is named after it. UserError: the format does not fit the model,
or the disk is full.
"""


@dataclass(frozen=True)
class BaseModel:
    """The model that training started from.

    Attributes:
        name: shown to people: a Hub id, the name of an embedded model, or the name of a folder.
        hub_id: USER/NAME, if the model is known to come from the Hub.
    """

    name: str
    hub_id: str | None = None


@dataclass(frozen=True)
class ExportedModel:
    """An export that has been written.

    Attributes:
        folder: where it is now.
        name: the name of its final folder.
        format: a key of `ldm.export.formats.formats.FORMATS`.
        repo_id: USER/NAME, if it is going to the Hub.
        base: the model that training started from; None if it was trained from scratch or only converted.
    """

    source: ExportSource
    folder: Path
    name: str
    format: str
    repo_id: str | None = None
    base: BaseModel | None = None

    @property
    def place(self) -> str:
        """How others refer to it: by its id on the Hub, or by its folder."""
        return self.repo_id or self.name

    @property
    def base_place(self) -> str:
        """How others refer to its base model."""
        return BASE_PLACEHOLDER if self.base is None else self.base.hub_id or self.base.name

    @property
    def pipeline_class(self) -> str:
        """The stock pipeline that the model is for."""
        parts = self.source.parts
        return parts.family.pipeline_for(parts.task)

    @property
    def is_lora(self) -> bool:
        """Whether it is a LoRA alone."""
        return FORMATS[self.format].is_lora

    @property
    def has_separate_lora(self) -> bool:
        """Whether it is a base model with the file of a LoRA beside it."""
        return self.format == "diffusers" and (self.folder / LORA_FILE).is_file()

    @property
    def token(self) -> str | None:
        """The token that a textual inversion learned."""
        adapter = self.source.adapter
        return str(adapter.settings["token"]) if adapter is not None and adapter.kind == "embedding" else None


@dataclass(frozen=True)
class Usage:
    """How an export is used; the model card shows it.

    Attributes:
        python: lines that load the export as `pipe`; empty if no Python library reads it.
        imports: import statements that they need, apart from `pipeline_class`.
        pipeline_class: the class to import from diffusers; None if another library is used.
        library: the library's name, if it is not diffusers.
        package: what to install for it with pip.
        model: what to pass to `ldm generate --model`; None if `ldm generate` does not read the format.
        lora: what to pass to `ldm generate --lora`, if anything.
        needs_download: `ldm generate` reads files, which must first be downloaded from the Hub.
        programs: other programs by the folder in which they look for `NAME.safetensors`.
    """

    python: tuple[str, ...]
    imports: tuple[str, ...] = ()
    pipeline_class: str | None = field(kw_only=True)
    library: str = "diffusers"
    package: str | None = None
    model: str | None = None
    lora: str | None = None
    needs_download: bool = False
    programs: Mapping[str, str] = field(default_factory=dict)


UsageOf = Callable[[ExportedModel], Usage]


def exporter_of(format: str) -> Exporter:
    """The exporter of a format, a key of `FORMATS`."""
    return cast(Exporter, resolve_name(FORMATS[format].export))


def usage_of(exported: ExportedModel) -> Usage:
    """How to use an export."""
    return cast(UsageOf, resolve_name(FORMATS[exported.format].usage))(exported)


def from_pretrained(pipeline_class: str, place: str, folder: Path | None = None) -> str:
    """The line that loads a stock folder; `folder` is where it is now, for the variant of its files."""
    variant = _variant(folder) if folder else None
    more = f", variant={literal(variant)}" if variant else ""
    return f"pipe = {pipeline_class}.from_pretrained({literal(place)}{more}, safety_checker=None)"


def _variant(folder: Path) -> str | None:
    try:
        return weights_variant(folder, "unet")
    except (UserError, OSError):
        return None


def literal(text: str) -> str:
    """A string literal of Python."""
    return json.dumps(text, ensure_ascii=False)
