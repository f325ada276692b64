"""`ldm likelihood`: bits per dimension of images under a model."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm.cli import options
from ldm.cli.plot import free_output
from ldm.cli.printer import Printer, reporting
from ldm.errors import UserError, warn

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.data.sample import Sample


@reporting
def likelihood(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model's folder, a run, a Hub id, or emoji.")
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="PATH", help="Images with captions, as for `ldm data check`, best held-out ones."
        ),
    ],
    num_images: Annotated[
        int, typer.Option(min=1, metavar="N", help="Use only the first N images; more narrow the interval.")
    ] = 100,
    num_levels: Annotated[
        int, typer.Option(min=1, metavar="N", help="Noise levels that are drawn for each image.")
    ] = 16,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="The number that all noise is drawn from.")
    ] = 0,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw what the noise levels add to the latents' part into this PNG."
        ),
    ] = None,
    device: options.Device = None,
    *,
    printer: Printer,
) -> None:
    """Measure how likely a model finds images, given their captions: an upper bound, in bits per dimension.

    It has three parts: reconstruction by the decoder, the entropy of the encoder's latents, and the denoiser's
    variational bound on the latents. Lower is better. Means come with 95 % intervals over the images. Images are scaled
    and cropped to the model's size.
    """
    if plot is not None:
        if plot.suffix.lower() != ".png":
            raise UserError(f"--plot {plot} is not a PNG", "name a file that ends in .png")
        plot = free_output(plot, plot)
    facts, lines = _measure(model, data, num_images, num_levels, seed, plot, device, printer)
    printer.result(facts, *lines)


def _measure(
    model: str,
    data: str,
    num_images: int,
    num_levels: int,
    seed: int,
    plot: Path | None,
    device: str | None,
    printer: Printer,
) -> tuple[dict[str, Any], list[str]]:
    """The result for JSON and as lines of text."""
    from ldm.data.sources.reading import SourceSettings, read_source
    from ldm.diffusion.schedulers import trained_path
    from ldm.evaluation.likelihood import describe, image_bounds, summary
    from ldm.evaluation.likelihood_plot import draw_terms
    from ldm.pipeline.pipeline import load_pipeline

    reading = read_source(SourceSettings(path=data), missing="empty")
    pipeline = load_pipeline(model, device=device)
    denoiser = pipeline.denoiser
    if denoiser.concat_channels or denoiser.num_class_labels or denoiser.needs_more_than_images:
        raise UserError(f"{model} needs more than a prompt", "choose a text-to-image model")
    path = trained_path(pipeline.scheduler_config, model)
    images = list(_pixels(reading.samples, num_images, pipeline.defaults.height, pipeline.defaults.width))
    if not images:
        raise UserError(f"{data} has no image that can be read", "`ldm data check` says why")
    done = 0

    def on_image() -> None:
        nonlocal done
        done += 1
        if done % 10 == 0:
            printer.note(f"{done} of {len(images)} images")

    bounds, deviation = image_bounds(
        pipeline.parts,
        path,
        images,
        num_levels=num_levels,
        seed=seed,
        device=pipeline.device,
        on_image=on_image,
    )
    found = summary(bounds)
    facts: dict[str, Any] = {
        "model": pipeline.model_id,
        "num_images": len(bounds),
        "num_levels": num_levels,
        "seed": seed,
        "decoder_deviation": deviation,
        "bits_per_dimension": found,
    }
    lines = describe(found)
    if plot is not None:
        draw_terms(bounds, plot)
        facts["plot"], lines = str(plot), [*lines, str(plot)]
    return facts, lines


def _pixels(
    samples: "list[Sample]", num_images: int, height: int, width: int
) -> "Iterator[tuple[str, str, Tensor]]":
    """Id, caption and pixel values of the first images that can be read; others are warned of."""
    from ldm.data.batches import ImageTransform

    transform, made = ImageTransform(height, width), 0
    for sample in samples:
        if made == num_images:
            return
        try:
            pixels = transform(sample)
        except UserError as error:
            warn(f"{sample.sample_id} is left out: {error.what}")
            continue
        made += 1
        yield sample.sample_id, sample.text, pixels
