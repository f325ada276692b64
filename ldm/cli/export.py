"""`ldm export`: a model for other programs, read back and compared before it is called done."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ldm.export.options import ExportOptions

FORMATS = "diffusers, single-file, lora-diffusers, lora-peft, lora-kohya, openvino"


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A training run's folder, a checkpoint in it, a model's folder, a Hub id, or emoji.",
        ),
    ],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="A new folder for the model and its card.")],
    format: Annotated[str, typer.Option("--format", metavar="NAME", help=f"One of {FORMATS}.")] = "diffusers",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What weights are stored in: float32, float16 or bfloat16 (half the size)."
        ),
    ] = "float32",
    variant: Annotated[
        bool,
        typer.Option(
            "--variant", help="Name the files after the dtype, for from_pretrained(variant='fp16')."
        ),
    ] = False,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Split larger files of a diffusers folder, such as 2GB.")
    ] = "10GB",
    keep_lora_apart: Annotated[
        bool,
        typer.Option(
            "--keep-lora-apart",
            help="With --format diffusers: the base as it is, and the LoRA's file beside it.",
        ),
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="average|trained|WIDTH",
            help="Of a checkpoint: the average that training would end with, the weights as trained, or the "
            "average of one of optim.average.widths.  [default: average]",
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Of the model card.  [default: the model's name]")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="SPDX", help="Of the weights, such as mit or creativeml-openrail-m."
        ),
    ] = None,
    num_samples: Annotated[
        int, typer.Option(min=0, metavar="N", help="Pictures that the model card shows.")
    ] = 4,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DEST if it exists.")] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="USER/NAME", help="Send it to the Hub once it is verified: see ldm push."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push-to-hub: everyone may see it. Otherwise only you.")
    ] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="With --push-to-hub: open a pull request.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="With --push-to-hub: where to.  [default: main]")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --push-to-hub: do not ask before sending.")
    ] = False,
) -> None:
    """Write a model for other programs, and prove that they read it.

    What was written is read back in a fresh process by the library that others use (diffusers, peft, OpenVINO), which
    draws a picture from fixed noise. It must be ours to 1/255, or the export fails. DEST holds the model, a model card
    (README.md) and export.json with the hashes of the files and the difference found.
    """
    from ldm.export.options import ExportOptions

    options = ExportOptions(
        format=format,
        dtype=dtype,
        variant=variant,
        max_shard_size=max_shard_size,
        fuse=not keep_lora_apart,
        title=title,
        licence=licence,
        repo_id=push_to_hub,
        num_samples=num_samples,
        overwrite=overwrite,
    )
    if push_to_hub is not None:
        from ldm.export.hub import check_repo_id

        check_repo_id(push_to_hub)  # before minutes of work
    _export(source, weights, dest, options)
    if push_to_hub is not None:
        from ldm.cli.push import send

        send(dest, push_to_hub, public=public, create_pr=create_pr, revision=revision, yes=yes)


def _export(source: str, weights: str | None, dest: Path, options: "ExportOptions") -> None:
    from ldm.cli.checkpoint import model_of
    from ldm.errors import UserError
    from ldm.export.artefact import export as write_export
    from ldm.export.source import load_source

    if dest.exists() and not options.overwrite and any(dest.iterdir() if dest.is_dir() else [dest]):
        raise UserError(f"{dest} exists already", "choose another place, or give --overwrite")
    with model_of(source, weights) as (folder, more):
        found = load_source(folder, **more)
        report = write_export(found, dest, options, say=lambda line: typer.echo(line, err=True))
    for verdict in report.verdicts:
        typer.echo(verdict, err=True)
    typer.echo(dest)
