"""`ldm init`: write a configuration for your images and model, with a comment on each line."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from ldm.cli.printer import Printer, reporting
from ldm.errors import UserError, unknown_name

TRAINABLE = ("lora", "unet", "text_encoder", "unet+text_encoder", "embedding")


Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA", help="Captioned images, in any form that `ldm data check` and `ldm train` read."
    ),
]
Base = Annotated[str, typer.Option(metavar="emoji|DIR|HUB_ID", help="The model to fine-tune.")]
Output = Annotated[
    Path | None,
    typer.Option(metavar="FILE.yaml", help="The file to write.  [default: the data's name]"),
]
Trainable = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(TRAINABLE), help="What to train.  [default: lora; unet for 2,000 images or more]"
    ),
]
CaptionColumn = Annotated[str, typer.Option(metavar="NAME", help="The column with the captions.")]
ImageColumn = Annotated[
    str, typer.Option(metavar="NAME", help="The column with the images or their file names.")
]
Kind = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="What DATA is: folder, parquet, webdataset or datasets; auto detects it."
    ),
]
MissingCaptions = Annotated[
    Literal["error", "empty", "filename", "folder"],
    typer.Option(help="What to do with images that have no caption, as captions.missing in a configuration."),
]
MaxBadFraction = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        metavar="X",
        help="Go on if up to this share of the images cannot be used, as data.max_bad_fraction in a "
        "configuration.  [default: 0.05]",
    ),
]


@reporting
def init(
    data: Data,
    base: Base = "emoji",
    output: Output = None,
    trainable: Trainable = None,
    caption_column: CaptionColumn = "text",
    image_column: ImageColumn = "image",
    kind: Kind = "auto",
    missing_captions: MissingCaptions = "error",
    max_bad_fraction: MaxBadFraction = None,
    *,
    printer: Printer,
) -> None:
    """Write a commented configuration for your images and model.

    `ldm train` can use it as it is. Image size, buckets, held-out images, batch size and number of steps are chosen to
    suit the images and the model. Nothing else is written.
    """
    from ldm.cli.autoconfig import describe_base, describe_data
    from ldm.cli.init_text import config_text
    from ldm.io.files import write_bytes

    if trainable is not None and trainable not in TRAINABLE:
        raise unknown_name("--trainable", trainable, TRAINABLE)
    name = re.sub(r"[^\w-]+", "-", Path(data).resolve().stem).strip("-") or "data"
    dest = output or Path(f"{name}.yaml")
    refuse_dest(dest, data)
    model = describe_base(base)
    found = describe_data(
        {"path": data, "kind": kind, "caption_column": caption_column, "image_column": image_column},
        model,
        missing=missing_captions,
        max_bad_fraction=max_bad_fraction,
        quiet=printer.quiet,
    )
    chosen = trainable or ("lora" if found.num_used < 2000 else "unet")
    text = config_text(model, found, chosen, dest, name, free_run_dir(name))
    write_bytes(dest, text.encode())
    facts = {"output": str(dest), "num_images": found.num_used, "trainable": chosen, "base": base}
    printer.result(facts, *_next_steps(dest, found.num_used, chosen, base))


def _next_steps(dest: Path, num_images: int, trainable: str, base: str) -> Iterator[str]:
    from ldm.io.messages import count

    command = f"ldm train {shlex.quote(str(dest))}"
    yield f"{dest}: {count(num_images, 'image')}, {trainable} on {base}. Next:"
    yield f"  {command} --plan"
    yield f"  {command}"


def refuse_dest(dest: Path, data: str) -> None:
    """Refuse a destination that would overwrite a file or is inside the data.

    Raises:
        UserError: it is one of these.
    """
    from ldm.data.sources.scan import refuse_inside, status_of

    if status_of(dest) is not None:
        raise UserError(f"{dest} exists already", "choose another --output, or move it away")
    refuse_inside(str(dest), dest, Path(data), choose="an --output")


def free_run_dir(name: str) -> str:
    """A run directory that does not exist yet."""
    number = 1
    while (path := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path.as_posix()
