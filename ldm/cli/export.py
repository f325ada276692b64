"""`ldm export`: writes a model for other programs, and verifies that they read it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm.cli.printer import Printer, reporting
from ldm.errors import UserError
from ldm.export.formats.formats import FORMATS

if TYPE_CHECKING:
    from ldm.export.export_options import ExportOptions

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="The folder of a training run, a checkpoint or a model; a Hub id; or emoji.",
    ),
]
Dest = Annotated[Path, typer.Argument(metavar="DEST", help="A new folder for the model and its card.")]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="NAME",
        help="; ".join(f"{name}: {format.summary}" for name, format in FORMATS.items()) + ".",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The number format of the stored weights: float32, or float16 or bfloat16 at half the size.",
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
        "--keep-lora-apart",
        help="With --format diffusers: write the base unchanged, and the LoRA's file beside it.",
    ),
]
StripVariance = Annotated[
    bool,
    typer.Option(
        "--strip-variance",
        help="Leave out a learned variance (schedule.learn_variance), which only the sampler ddpm uses and other "
        "samplers of diffusers fail on. A single file never has it.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="average|trained|WIDTH",
        help="The weights of a checkpoint to export: the average that training would end with, the weights as trained, "
        "or the average of one of optim.average.widths.  [default: average]",
    ),
]
Title = Annotated[
    str | None, typer.Option(metavar="TEXT", help="The model card's title.  [default: the model's name]")
]
Licence = Annotated[
    str | None,
    typer.Option(
        "--license", metavar="SPDX", help="The licence of the weights, such as mit or creativeml-openrail-m."
    ),
]
NumSamples = Annotated[int, typer.Option(min=0, metavar="N", help="The number of images on the model card.")]
Evaluations = Annotated[
    list[Path] | None,
    typer.Option(
        "--evaluation",
        metavar="PATH",
        help="The output of ldm evaluate or ldm audit memorisation, for the model card; may be repeated. Outputs in "
        "and beside a run's directory are found without it.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace DEST if an earlier export wrote it.")]
Space = Annotated[
    bool,
    typer.Option(
        "--space",
        help="Make DEST a Space of Hugging Face that serves the model with the page of ldm serve; the model is in "
        "a folder in it.",
    ),
]
PushToHub = Annotated[
    str | None,
    typer.Option(metavar="USER/NAME", help="Send the verified export to the Hub, as ldm push does."),
]
Public = Annotated[
    bool, typer.Option("--public", help="With --push-to-hub: make it visible to everyone, not only to you.")
]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="With --push-to-hub: open a pull request.")]
Revision = Annotated[
    str | None,
    typer.Option(metavar="BRANCH", help="With --push-to-hub: the branch to send it to.  [default: main]"),
]
Yes = Annotated[bool, typer.Option("--yes", help="With --push-to-hub: do not ask before sending.")]


@reporting
def export(
    source: Source,
    dest: Dest,
    format: Format = "diffusers",
    dtype: Dtype = "float32",
    variant: Variant = False,
    max_shard_size: MaxShardSize = "10GB",
    keep_lora_apart: KeepLoraApart = False,
    strip_variance: StripVariance = False,
    weights: Weights = None,
    title: Title = None,
    licence: Licence = None,
    num_samples: NumSamples = 4,
    evaluation: Evaluations = None,
    overwrite: Overwrite = False,
    space: Space = False,
    push_to_hub: PushToHub = None,
    public: Public = False,
    create_pr: CreatePr = False,
    revision: Revision = None,
    yes: Yes = False,
    *,
    printer: Printer,
) -> None:
    """Write a model for other programs, and verify that they read it.

    A fresh process reads the export with the library that others use (diffusers, peft, OpenVINO), draws an image from
    fixed noise and encodes an image. Both must match ours to 1/255, or the export fails. DEST then holds the model, a
    model card (README.md), and export.json with the hashes of the files and the measured difference.
    """
    from ldm.export.export_options import ExportOptions

    options = ExportOptions(
        format=format,
        dtype=dtype,
        variant=variant,
        max_shard_size=max_shard_size,
        strip_variance=strip_variance,
        fuse=not keep_lora_apart,
        title=title,
        licence=licence,
        repo_id=push_to_hub,
        num_samples=num_samples,
        overwrite=overwrite,
        space=space,
        evaluations=tuple(evaluation or ()),
    )
    sending: dict[str, Any] = {"public": public, "create_pr": create_pr, "revision": revision, "yes": yes}
    if push_to_hub is not None and space:
        way = f"export it without --push-to-hub, then: hf upload {push_to_hub} {dest} --repo-type space"
        raise UserError("--push-to-hub sends models, not Spaces", way)
    if push_to_hub is not None:
        from ldm.export.hub.upload import check_repo_id

        check_repo_id(push_to_hub)  # before minutes of work
    else:
        _refuse_unsent(**sending)
    facts = _export(source, weights, dest, options, printer)
    if push_to_hub is not None:
        from ldm.cli.push import send

        facts["pushed"] = send(dest, push_to_hub, printer, **sending)
    printer.result(facts)


def _refuse_unsent(**given: Any) -> None:
    """Refuse options for sending if nothing is sent."""
    for name, value in given.items():
        if value:
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{option} without --push-to-hub", f"add --push-to-hub USER/NAME, or leave {option} out"
            )


def _export(
    source: str, weights: str | None, dest: Path, options: "ExportOptions", printer: Printer
) -> dict[str, Any]:
    """Write the export and print its folder; returns the facts for JSON."""
    from ldm.cli.checkpoint import model_of
    from ldm.export.artefact import export as write_export
    from ldm.export.export_source import load_source
    from ldm.io.folders import is_taken
    from ldm.io.ownership import check_replaceable

    if options.overwrite:
        check_replaceable(dest)  # before minutes of work
    elif is_taken(dest):
        raise UserError(f"{dest} exists already", "choose another folder, or add --overwrite")
    with model_of(source, weights) as (folder, more):
        found = load_source(folder, **more)
        report = write_export(found, dest, options, say=printer.note)
    for verdict in report.verdicts:
        printer.note(str(verdict))
    printer.lines(dest)
    return {
        "output": str(dest),
        "format": options.format,
        "verified": [each.to_dict() for each in report.verdicts],
    }
