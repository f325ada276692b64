"""The arguments and options of `ldm export`: their types, bounds and what their help teaches."""

from pathlib import Path
from typing import Annotated

import typer

FORMATS = "diffusers, single-file, lora-diffusers, lora-peft, lora-kohya, openvino"

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A training run's folder, a checkpoint in it, a model's folder, a Hub id, or emoji.",
    ),
]
Dest = Annotated[Path, typer.Argument(metavar="DEST", help="A new folder for the model and its card.")]
Format = Annotated[str, typer.Option("--format", metavar="NAME", help=f"One of {FORMATS}.")]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="What weights are stored in: float32, float16 or bfloat16 (half the size)."
    ),
]
Variant = Annotated[
    bool,
    typer.Option("--variant", help="Name the files after the dtype, for from_pretrained(variant='fp16')."),
]
MaxShardSize = Annotated[
    str, typer.Option(metavar="SIZE", help="Split larger files of a diffusers folder, such as 2GB.")
]
KeepLoraApart = Annotated[
    bool,
    typer.Option(
        "--keep-lora-apart", help="With --format diffusers: the base as it is, and the LoRA's file beside it."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="average|trained|WIDTH",
        help="Of a checkpoint: the average that training would end with, the weights as trained, or the "
        "average of one of optim.average.widths.  [default: average]",
    ),
]
Title = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Of the model card.  [default: the model's name]")
]
Licence = Annotated[
    str | None,
    typer.Option("--license", metavar="SPDX", help="Of the weights, such as mit or creativeml-openrail-m."),
]
NumSamples = Annotated[int, typer.Option(min=0, metavar="N", help="Pictures that the model card shows.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace DEST if it exists.")]
PushToHub = Annotated[
    str | None,
    typer.Option(metavar="USER/NAME", help="Send it to the Hub once it is verified: see ldm push."),
]
Public = Annotated[
    bool, typer.Option("--public", help="With --push-to-hub: everyone may see it. Otherwise only you.")
]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="With --push-to-hub: open a pull request.")]
Revision = Annotated[
    str | None, typer.Option(metavar="BRANCH", help="With --push-to-hub: where to.  [default: main]")
]
Yes = Annotated[bool, typer.Option("--yes", help="With --push-to-hub: do not ask before sending.")]
