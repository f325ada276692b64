"""`ldm generate`: images from prompts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ldm.cli import options
from ldm.cli.generate_processes import count_of, make_in_processes
from ldm.cli.printer import Printer
from ldm.errors import UserError
from ldm.io.collector import collector_paused
from ldm.io.messages import own_warnings, say_warning
from ldm.models.generation_settings import GenerationSettings
from ldm.models.settings_as_arguments import spell_out
from ldm.models.settings_reading import parse_settings

if TYPE_CHECKING:
    from ldm.generation.job import GenerationJob
    from ldm.generation.model_options import ModelOptions
    from ldm.generation.output import GridLayout, Target
    from ldm.generation.reproduce import Original
    from ldm.io.progress import WorkBar
    from ldm.pipeline.batches import ImageRequest, Prompt


def generate(
    *,
    prompts: options.Prompts = None,
    prompt_file: options.PromptFile = None,
    image: options.Image = None,
    mask: options.Mask = None,
    control: options.Control = None,
    reference: options.Reference = None,
    reproduce: options.Reproduce = None,
    from_image: options.FromImage = None,
    output: options.Output = Path("outputs"),
    file_format: options.Format = "png",
    quality: options.Quality = None,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    grid: options.Grid = False,
    grid_x: options.GridX = None,
    grid_y: options.GridY = None,
    num_processes: options.NumProcesses = 1,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    **given: Any,
) -> None:
    """Make images from prompts and images, and print the path of each.

    Settings that are left out come from the model. Every image stores its settings, for other programs (`parameters`)
    and for --reproduce, and says that an AI made it.
    """
    if given["scheduler"] == "list":
        typer.echo("\n".join(_scheduler_lines()))
        return
    with collector_paused():
        from ldm.generation.job import GenerationJob, run_rank
        from ldm.generation.output import Target

    if from_image is not None:
        say_warning("--from-image is now called --reproduce")
    made_with = {name: given.pop(name) for name in (*options.NETWORKS, *options.COMPUTING)}
    signing, safety = options.take_signing(given), options.take_safety(given)
    given["seed"] = options.read_seed(given["seed"])
    given_images = (image, mask, tuple(control or ()), tuple(reference or ()))
    original, asked = _plan(prompts or [], prompt_file, given_images, reproduce or from_image, given)
    asked, layout = _over_grid(asked, grid_x, grid_y)
    target = Target(
        output, overwrite=overwrite, resume=resume, grid=grid or layout is not None, layout=layout,
        file_format=file_format, quality=quality, signing=signing, safety=safety,
    )  # fmt: skip
    images = _list_images(asked, target)
    target.check(images)
    with model_options(made_with) as chosen:
        job = GenerationJob(tuple(images), target, chosen, original)
        num_processes = min(num_processes, len(job.batches))
        if num_processes > 1:
            make_in_processes(job, num_processes, quiet=quiet)
        else:
            written: list[Path] = []
            with _progress(job, written, quiet=quiet) as bar:
                written.extend(run_rank(job, say=bar.say, on_progress=bar.show))
    if target.grid:
        target.write_grid(images)
    Printer(as_json=as_json, quiet=quiet).result(_described(images, target), *target.paths(images))


spell_out(generate, options.parameters_of(options.NETWORKS), before="output")
spell_out(generate, options.parameters_of({**options.SAFETY, **options.SIGNING}), before="overwrite")
spell_out(
    generate,
    options.setting_options(GenerationSettings) + options.parameters_of(options.COMPUTING),
    before="num_processes",
)


@contextmanager
def model_options(given: dict[str, Any]) -> "Iterator[ModelOptions]":
    """What the images are made with. A checkpoint is written as a model, which exists until the block ends."""
    from ldm.cli.checkpoint import model_of
    from ldm.generation.model_options import ModelOptions, read_batch_size

    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    chosen |= {name: tuple(value) for name, value in chosen.items() if isinstance(value, list)}
    chosen["batch_size"] = read_batch_size(
        given["batch_size"], low_memory=given["low_memory"], device=given["device"]
    )
    with ExitStack() as stack:
        for name in {"model", "guide_model", "refiner"} & set(chosen):
            chosen[name], _ = stack.enter_context(model_of(chosen[name]))
        yield ModelOptions(**chosen)


@contextmanager
def _progress(job: "GenerationJob", written: Sequence[Path], *, quiet: bool) -> Iterator["WorkBar"]:
    """A bar for the steps, and our own warnings. If Ctrl-C ends the block, how much is `written` is said."""
    from ldm.io.progress import work_bar

    try:
        with work_bar("step", hidden=quiet) as bar, own_warnings(_ignore if quiet else say_warning):
            yield bar
    except KeyboardInterrupt:
        done = f"{len(written)} of {count_of(job)} written to {job.target.folder}"
        raise KeyboardInterrupt(f"stopped; {done}") from None


def _ignore(message: str) -> None:
    """With --quiet, warnings are not printed."""


def _described(images: "Sequence[ImageRequest]", target: "Target") -> dict[str, Any]:
    """What `--json` prints."""
    made = [{"path": str(target.path(image)), "prompt": image.prompt, "seed": image.seed} for image in images]
    return {"images": made, "grid": str(target.grid_path) if target.grid else None}


def _list_images(prompts: "Sequence[Prompt]", target: "Target") -> "list[ImageRequest]":
    """The images that the prompts ask for.

    If no seed is given, it is 0, or the first from there for which none of the images exists: a second call makes other
    images than the first.
    """
    from ldm.pipeline.batches import list_images

    images = list_images(prompts)
    if target.overwrite or target.resume or any("seed" in each.settings.given() for each in prompts):
        return images
    seed = 0
    while any(target.path(image).exists() for image in images):
        seed += 1
        base = GenerationSettings(seed=seed)
        images = list_images(prompt.over(base) for prompt in prompts)
    return images


def _plan(
    texts: Sequence[str],
    prompt_file: Path | None,
    given_images: tuple[Path | None, str | None, tuple[str, ...], tuple[str, ...]],
    reproduce: Path | None,
    given: Mapping[str, Any],
) -> "tuple[Original | None, list[Prompt]]":
    """The prompts with their settings and images, and the original that is reproduced.

    A prompt's own settings win over the options, and those over the original's.
    """
    from ldm.generation.given_images import with_images
    from ldm.generation.prompts import check_installed, parse_prompt, read_prompts
    from ldm.generation.reproduce import read_original

    base = parse_settings(given, GenerationSettings)
    check_installed(base)
    original = read_original(reproduce) if reproduce else None
    prompts = [parse_prompt({"prompt": text}) for text in texts]
    prompts += read_prompts(prompt_file) if prompt_file else []
    if original:
        base = base.over(original.prompt.settings)
        prompts = prompts or [parse_prompt({"prompt": original.prompt.prompt}, where=str(reproduce))]
    if not prompts:
        raise UserError("no prompt", 'write one, such as ldm generate "a red apple"')
    prompts = with_images(prompts, *given_images)
    if original:
        for prompt in prompts:
            original.check_inputs(prompt.inputs)
        prompts = [original.with_controls(prompt) for prompt in prompts]
    return original, [prompt.over(base) for prompt in prompts]


def _over_grid(
    prompts: "list[Prompt]", grid_x: str | None, grid_y: str | None
) -> "tuple[list[Prompt], GridLayout | None]":
    """The prompts with the values of --grid-x and --grid-y, and the layout of their grid."""
    from ldm.generation.output import GridLayout
    from ldm.pipeline.xy_grid import over_grid, parse_axis

    if grid_x is None and grid_y is None:
        return prompts, None
    x, y = (None if text is None else parse_axis(text) for text in (grid_x, grid_y))
    layout = GridLayout(tuple(prompt.prompt for prompt in prompts), x, y)
    return over_grid(prompts, x, y), layout


def _scheduler_lines() -> Iterator[str]:
    """A line a sampler: its short name, what others call it, and what is special about it."""
    from ldm.diffusion.scheduler_names import OWN_SCHEDULER, SCHEDULERS

    yield f"{OWN_SCHEDULER:14}the sampler and the settings of the model's own scheduler config"
    for name, entry in SCHEDULERS.items():
        notes = ["adds noise at each step"] if entry.stochastic else []
        notes += ["for models distilled for few steps"] if entry.for_few_steps else []
        if not entry.available:
            notes.append(f"not usable here: needs {entry.requires} (pip install {entry.requires})")
        yield f"{name:14}{entry.title:14}{'; '.join(notes)}".rstrip()
