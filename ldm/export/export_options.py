"""What can be asked of an export: formats, number formats, and what goes into the card."""

import re
from dataclasses import dataclass

import torch

from ldm.errors import UserError, unknown_name

FORMATS = {
    "diffusers": "a folder for diffusers' StableDiffusionPipeline",
    "single-file": "one file in the original layout of Stable Diffusion 1 and 2",
    "lora-diffusers": "a LoRA for diffusers' load_lora_weights",
    "lora-peft": "a LoRA in peft's own layout",
    "lora-kohya": "a LoRA for the many programs that read kohya's naming",
    "openvino": "networks for OpenVINO on Intel's processors",
}
"""By name: what it is good for."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


SIZE = re.compile(r"[1-9]\d*[KMGT]B")
"""A size that diffusers and transformers both understand."""


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        format: a key of FORMATS.
        dtype: that weights are stored in, a key of DTYPES.
        variant: name the files of a diffusers folder after the dtype.
        max_shard_size: larger safetensors of a diffusers folder are split.
        fuse: add a LoRA to the weights; else its file lies beside its base.
        title: of the model card; default: the model's id.
        licence: of the weights, an SPDX name such as "mit".
        repo_id: USER/NAME on the Hub, for the card's examples.
        num_samples: pictures that the card shows.
        overwrite: take the place of a folder that exists.
    """

    format: str = "diffusers"
    dtype: str = "float32"
    variant: bool = False
    max_shard_size: str = "10GB"
    fuse: bool = True
    title: str | None = None
    licence: str | None = None
    repo_id: str | None = None
    num_samples: int = 4
    overwrite: bool = False

    def __post_init__(self) -> None:
        for what, value, known in (("format", self.format, FORMATS), ("dtype", self.dtype, DTYPES)):
            if value not in known:
                raise unknown_name(what, value, known)
        if not SIZE.fullmatch(self.max_shard_size):
            raise UserError(f"max_shard_size is {self.max_shard_size!r}", "write it like 200MB or 2GB")
