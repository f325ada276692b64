"""`ldm init`: write a configuration for your images and model, with a comment on each line."""

import re
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from ldm.errors import UserError, unknown_name

TRAINABLE = ("lora", "unet", "text_encoder", "unet+text_encoder", "embedding")


def init(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Captioned images, in any form that `ldm data check` and `ldm train` read."
        ),
    ],
    base: Annotated[str, typer.Option(metavar="emoji|DIR|HUB_ID", help="The model to fine-tune.")] = "emoji",
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.yaml", help="The file to write.  [default: the data's name]"),
    ] = None,
    trainable: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(TRAINABLE), help="What to train.  [default: lora; unet for 2,000 images or more]"
        ),
    ] = None,
    caption_column: Annotated[
        str, typer.Option(metavar="NAME", help="The column with the captions.")
    ] = "text",
    image_column: Annotated[
        str, typer.Option(metavar="NAME", help="The column with the images or their file names.")
    ] = "image",
    kind: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What DATA is: folder, parquet, webdataset or datasets; auto detects it."
        ),
    ] = "auto",
    missing_captions: Annotated[
        Literal["error", "empty", "filename", "folder"],
        typer.Option(
            help="What to do with images that have no caption, as captions.missing in a configuration."
        ),
    ] = "error",
    max_bad_fraction: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="X",
            help="Go on if up to this share of the images cannot be used, as data.max_bad_fraction in a "
            "configuration.  [default: 0.05]",
        ),
    ] = None,
) -> None:
    """Write a commented configuration for your images and model.

    `ldm train` can use it as it is. Image size, buckets, held-out images, batch size and number of steps are chosen to
    suit the images and the model. Nothing else is written.
    """
    from ldm.cli.autoconfig import describe_base, describe_data
    from ldm.cli.init_text import config_text
    from ldm.cli.messages import count
    from ldm.io.files import write_bytes

    if trainable is not None and trainable not in TRAINABLE:
        raise unknown_name("--trainable", trainable, TRAINABLE)
    name = re.sub(r"[^\w-]+", "-", Path(data).resolve().stem).strip("-") or "data"
    dest = output or Path(f"{name}.yaml")
    refuse_dest(dest, data)
    model = describe_base(base)
    columns = {"caption_column": caption_column, "image_column": image_column}
    found = describe_data(
        {"path": data, "kind": kind, **columns},
        model,
        missing=missing_captions,
        max_bad_fraction=max_bad_fraction,
    )
    chosen = trainable or ("lora" if found.num_used < 2000 else "unet")
    text = config_text(model, found, chosen, dest, name, free_run_dir(name))
    write_bytes(dest, text.encode())
    typer.echo(f"{dest}: {count(found.num_used, 'image')}, {chosen} on {base}. Next:")
    command = f"ldm train {shlex.quote(str(dest))}"
    typer.echo(f"  {command} --plan\n  {command}")


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
