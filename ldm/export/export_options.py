"""The options of an export: format, number format, and what the model card says."""

import re
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError, unknown_name
from ldm.export.formats.formats import FORMATS
from ldm.models.devices import DTYPES

SIZE = re.compile(r"[1-9]\d*[KMGT]B")
"""A size that both diffusers and transformers understand."""


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        format: a key of `ldm.export.formats.formats.FORMATS`.
        dtype: the number format of the stored weights, a key of `ldm.models.devices.DTYPES`.
        variant: name the files of a diffusers folder after the dtype.
        max_shard_size: split larger safetensors files of a diffusers folder.
        strip_variance: leave out a learned variance, also where the format could hold it.
        fuse: add a LoRA to the weights; otherwise its file is written beside its base.
        title: the model card's title; default: the model's id.
        licence: the licence of the weights, an SPDX name such as "mit".
        repo_id: USER/NAME on the Hub, for the card's examples.
        num_samples: the number of images on the card.
        overwrite: replace an existing folder.
        space: make a Space of Hugging Face that serves the model.
        evaluations: reports of `ldm evaluate` or `ldm audit memorisation`, for the card.

    Raises:
        UserError: the format, the dtype or the size is unknown, or is not one that a Space serves.
    """

    format: str = "diffusers"
    dtype: str = "float32"
    variant: bool = False
    max_shard_size: str = "10GB"
    strip_variance: bool = False
    fuse: bool = True
    title: str | None = None
    licence: str | None = None
    repo_id: str | None = None
    num_samples: int = 4
    overwrite: bool = False
    space: bool = False
    evaluations: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for what, value, known in (("format", self.format, FORMATS), ("dtype", self.dtype, DTYPES)):
            if value not in known:
                raise unknown_name(what, value, known)
        if not SIZE.fullmatch(self.max_shard_size):
            raise UserError(f"max_shard_size is {self.max_shard_size!r}", "write it as in 200MB or 2GB")
        if self.space and self.format != "diffusers":
            raise UserError(f"--space with --format {self.format}", "a Space serves the format diffusers")
        if self.space and not self.fuse:
            raise UserError(
                "--space with --keep-lora-apart", "leave one out: a Space serves the LoRA's model as one"
            )
