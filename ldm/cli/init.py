"""`ldm init`: a configuration for one's own images and model, each line with what it is."""

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from ldm.errors import UserError, unknown_name

TRAINABLE = ("lora", "unet", "text_encoder", "unet+text_encoder", "embedding")


def init(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Captioned images, as `ldm data check` and `ldm train` read them."
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
            metavar="|".join(TRAINABLE), help="What is trained.  [default: lora, from 2,000 images on unet]"
        ),
    ] = None,
    caption_column: Annotated[
        str, typer.Option(metavar="NAME", help="The column with the captions.")
    ] = "text",
    image_column: Annotated[
        str, typer.Option(metavar="NAME", help="The column with the images, or with their names.")
    ] = "image",
    kind: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What DATA is: folder, parquet, webdataset or datasets; auto looks."
        ),
    ] = "auto",
) -> None:
    """Write a commented configuration for your images and a model; `ldm train` takes it as it is.

    Sizes, buckets, held-out images, batch and number of steps follow from what is there. Nothing else is written.
    """
    from ldm.cli.autoconfig import look_at_base, look_at_data
    from ldm.cli.init_text import config_text
    from ldm.io.files import write_bytes

    if trainable is not None and trainable not in TRAINABLE:
        raise unknown_name("--trainable", trainable, TRAINABLE)
    name = re.sub(r"[^\w-]+", "-", Path(data).resolve().stem).strip("-") or "data"
    dest = output or Path(f"{name}.yaml")
    refuse_dest(dest, data)
    model = look_at_base(base)
    columns = {"caption_column": caption_column, "image_column": image_column}
    found = look_at_data({"path": data, "kind": kind, **columns}, model)
    chosen = trainable or ("lora" if found.num_used < 2000 else "unet")
    text = config_text(model, found, chosen, dest, name, free_run_dir(name))
    write_bytes(dest, text.encode())
    typer.echo(f"{dest}: {found.num_used} images, {chosen} on {base}. Next:")
    command = f"ldm train {shlex.quote(str(dest))}"
    typer.echo(f"  {command} --plan\n  {command}")


def refuse_dest(dest: Path, data: str) -> None:
    """Refuse to write over a file or into the data.

    Raises:
        UserError: it would.
    """
    from ldm.data.sources.scan import refuse_inside, status_of

    if status_of(dest) is not None:
        raise UserError(f"{dest} exists already", "choose another --output, or move it away")
    refuse_inside(str(dest), dest, Path(data), choose="an --output")


def free_run_dir(name: str) -> str:
    """A run's directory that is not there yet."""
    number = 1
    while (path := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path.as_posix()
