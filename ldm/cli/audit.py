"""`ldm audit`: does a model copy its training images, and what does its autoencoder lose?"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm.cli import options
from ldm.cli.evaluate import FeaturesOption, Model, NumProcesses, Seed, WithLpips, make_features, plan_job
from ldm.cli.printer import Printer, reporting
from ldm.errors import UserError, warn

audit_app = typer.Typer(
    help="Look for copied training images; measure what an autoencoder loses.", rich_markup_mode=None
)

DEFAULT_IMAGES, MAX_SHOWN = 256, 60

Data = Annotated[
    str,
    typer.Option(metavar="PATH", help="Captioned images, as `ldm data check` reads them."),
]
NumImages = Annotated[
    int, typer.Option("--num-images", "-n", min=1, metavar="N", help="How many images to look at.")
]
Output = Annotated[Path, typer.Option(metavar="FOLDER", help="Where audit.json and audit.html go.")]
Steps = Annotated[
    int | None,
    typer.Option("--num-inference-steps", min=1, metavar="N", help="Sampling steps.  [default: the model's]"),
]


@audit_app.callback()
def audit() -> None:
    """Look for copied training images; measure what an autoencoder loses."""


@audit_app.command()
@reporting
def memorisation(
    model: Model,
    data: Data,
    num_images: NumImages = DEFAULT_IMAGES,
    seed: Seed = 0,
    features: FeaturesOption = "autoencoder",
    steps: Steps = None,
    output: Output = Path("audit"),
    num_processes: NumProcesses = 1,
    device: options.Device = None,
    dtype: options.Dtype = None,
    *,
    printer: Printer,
) -> None:
    """Generate images from the captions of the training data, and count those that are copies of a training image.

    An image is a copy if it is nearer to a training image than all but 1 % of the training images are to another one.
    How many copies this finds is measured on planted ones.
    """
    from dataclasses import replace

    from ldm.cli.checkpoint import model_of
    from ldm.evaluation.audit_page import write_memorisation_page
    from ldm.evaluation.evaluation_job import read_features
    from ldm.evaluation.memorisation import LEAST_FOUND
    from ldm.evaluation.memorisation import audit as find_copies
    from ldm.io.files import write_json

    with model_of(model) as (place, _):
        job = plan_job(
            place,
            data=data,
            columns={},
            prompt_file=None,
            num_images=num_images,
            seed=seed,
            settings={} if steps is None else {"num_inference_steps": steps},
            output=output,
            quiet=printer.quiet,
            options={"features": features, "device": device, "dtype": dtype},
        )
        job = replace(job, planted=True)
        if len(job.sample_ids) < 2:
            raise UserError(f"{data} has one usable image", "an audit needs several to compare with")
        make_features(job, num_processes, quiet=printer.quiet)
    kept = read_features(job)
    found = find_copies(kept.generated, kept.reference, kept.planted)
    facts = {"model": model, "plan": kept.plan, **found.to_dict()}
    if found.planted_found < LEAST_FOUND:
        share = f"{found.planted_found:.2f} of the planted copies"
        warn(f"the thresholds find only {share}: the model may make more copies than were found")
    write_json(output / "audit.json", facts)
    page = write_memorisation_page(output / "audit.html", facts, found, kept, job)
    printer.result(facts, *_memorisation_lines(facts), f"page: {page}")


def _memorisation_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    interval = f"{facts['share']:.3f} [{facts['low']:.3f}, {facts['high']:.3f}]"
    yield f"copies of training images: {facts['num_copies']} of {facts['num_images']}, {interval}"
    yield f"planted copies found: {facts['planted_found']:.3f} of {facts['num_planted']}"
    yield f"training images that would be taken for copies: {facts['false_alarms']:.4f}"


@audit_app.command()
@reporting
def autoencoder(
    model: Model,
    data: Data,
    num_images: NumImages = DEFAULT_IMAGES,
    height: Annotated[
        int | None, typer.Option(min=1, metavar="PIXELS", help="Image height.  [default: the model's]")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, metavar="PIXELS", help="Image width.  [default: the model's]")
    ] = None,
    lpips: WithLpips = False,
    output: Output = Path("audit"),
    device: options.Device = None,
    *,
    printer: Printer,
) -> None:
    """Encode and decode images, and measure what is lost: error, structure, colour and detail at each scale.

    This limits every image of the model, however well it is trained. The ten worst images are shown.
    """
    from ldm.evaluation.audit_page import write_autoencoder_page
    from ldm.evaluation.autoencoder_audit import audit_autoencoder
    from ldm.io.files import write_json
    from ldm.io.progress import work_bar

    with work_bar("image", hidden=printer.quiet) as bar:
        found = audit_autoencoder(
            model, data, num_images, (height, width), output, lpips=lpips, device=device, on_progress=bar.show
        )
    facts = {"model": model, **found.to_dict()}
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "audit.json", facts)
    page = write_autoencoder_page(output / "audit.html", facts, found)
    printer.result(facts, *_autoencoder_lines(facts), f"page: {page}")


def _autoencoder_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    kinds = ", ".join(f"{number} {kind}" for kind, number in facts["sources"].items())
    yield f"{facts['num_images']} images of {facts['size'][1]} x {facts['size'][0]} pixels: {kinds}"
    width = max(18, *map(len, facts["numbers"]))
    for name, each in facts["numbers"].items():
        if each["value"] is not None:
            limits = "" if each["low"] is None else f" [{each['low']:.4g}, {each['high']:.4g}]"
            yield f"{name.replace('_', ' '):{width}} {each['value']:.4g}{limits}"
