"""`ldm export`: a model for other programs, read back and compared before it is called done."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ldm.cli import export_options as given
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.export.export_options import ExportOptions


def export(
    source: given.Source,
    dest: given.Dest,
    format: given.Format = "diffusers",
    dtype: given.Dtype = "float32",
    variant: given.Variant = False,
    max_shard_size: given.MaxShardSize = "10GB",
    keep_lora_apart: given.KeepLoraApart = False,
    weights: given.Weights = None,
    title: given.Title = None,
    licence: given.Licence = None,
    num_samples: given.NumSamples = 4,
    overwrite: given.Overwrite = False,
    push_to_hub: given.PushToHub = None,
    public: given.Public = False,
    create_pr: given.CreatePr = False,
    revision: given.Revision = None,
    yes: given.Yes = False,
) -> None:
    """Write a model for other programs, and prove that they read it.

    What was written is read back in a fresh process by the library that others use (diffusers, peft, OpenVINO), which
    draws a picture from fixed noise and encodes an image. Both must be ours to 1/255, or the export fails. DEST holds
    the model, a model card (README.md) and export.json with the hashes of the files and the difference found.
    """
    from ldm.export.export_options import ExportOptions

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
        from ldm.export.hub.upload import check_repo_id

        check_repo_id(push_to_hub)  # before minutes of work
    else:
        _refuse_unsent(public=public, create_pr=create_pr, revision=revision, yes=yes)
    _export(source, weights, dest, options)
    if push_to_hub is not None:
        from ldm.cli.push import send

        send(dest, push_to_hub, public=public, create_pr=create_pr, revision=revision, yes=yes)


def _refuse_unsent(**given: Any) -> None:
    """Refuse options that say how to send, where nothing is sent."""
    for name, value in given.items():
        if value:
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{option} without --push-to-hub", f"add --push-to-hub USER/NAME, or leave {option} out"
            )


def _export(source: str, weights: str | None, dest: Path, options: "ExportOptions") -> None:
    from ldm.cli.checkpoint import model_of
    from ldm.export.artefact import export as write_export
    from ldm.export.export_source import load_source
    from ldm.io.files import is_taken

    if is_taken(dest) and not options.overwrite:
        raise UserError(f"{dest} exists already", "choose another place, or give --overwrite")
    with model_of(source, weights) as (folder, more):
        found = load_source(folder, **more)
        report = write_export(found, dest, options, say=lambda line: typer.echo(line, err=True))
    for verdict in report.verdicts:
        typer.echo(verdict, err=True)
    typer.echo(dest)
