"""`ldm generate`: images from prompts."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ldm.cli import options
from ldm.cli.generate_processes import count_of, make_in_processes
from ldm.cli.messages import own_warnings, say_warning
from ldm.errors import UserError
from ldm.io.collector import collector_paused
from ldm.models.generation_settings import GenerationSettings, parse_settings, spell_out

if TYPE_CHECKING:
    from ldm.generation.reproduce import Original
    from ldm.pipeline.batches import ImageRequest


def generate(
    *,
    prompts: options.Prompts = None,
    prompt_file: options.PromptFile = None,
    image: options.Image = None,
    mask: options.Mask = None,
    reproduce: options.Reproduce = None,
    from_image: options.FromImage = None,
    model: options.Model = None,
    lora: options.Lora = None,
    vae: options.Vae = None,
    base: options.Base = None,
    prediction_type: options.PredictionType = None,
    output: options.Output = Path("outputs"),
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    grid: options.Grid = False,
    batch_size: options.BatchSize = None,
    num_processes: options.NumProcesses = 1,
    low_memory: options.LowMemory = False,
    engine: options.Engine = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    compile: options.Compile = False,
    **settings: Any,
) -> None:
    """Make images from prompts, or from prompts and images, and print the path of each.

    Settings that are left out come from the model. Every image stores its settings, for other programs (`parameters`)
    and for --reproduce.
    """
    if settings["scheduler"] == "list":
        typer.echo("\n".join(_scheduler_lines()))
        return
    with collector_paused():
        from ldm.generation.job import GenerationJob, run_rank
        from ldm.generation.model_options import ModelOptions, read_batch_size
        from ldm.generation.output import Target
        from ldm.io.progress import work_bar

    if from_image is not None:
        say_warning("--from-image is now called --reproduce")
    original, images = _plan(prompts or [], prompt_file, (image, mask), reproduce or from_image, settings)
    target = Target(output, overwrite=overwrite, grid=grid, resume=resume)
    target.check(images)
    at_once = read_batch_size(batch_size, low_memory=low_memory, device=device)
    made_with = ModelOptions(
        model,
        tuple(lora or ()),
        engine,
        device,
        dtype,
        low_memory,
        at_once,
        compile,
        vae,
        base,
        prediction_type,
    )
    job = GenerationJob(tuple(images), target, made_with, original)
    num_processes, num_written = min(num_processes, len(job.batches)), 0
    if num_processes > 1:
        make_in_processes(job, num_processes)
    else:
        try:
            with work_bar("step") as bar, own_warnings():
                for _ in run_rank(job, say=bar.say, on_progress=bar.show):
                    num_written += 1
        except KeyboardInterrupt:
            written = f"{num_written} of {count_of(job)} written to {output}"
            raise KeyboardInterrupt(f"stopped; {written}") from None
    if grid:
        target.write_grid(images)
    for path in target.paths(images):
        typer.echo(path)


spell_out(generate, options.setting_options(GenerationSettings), before="batch_size")


def _plan(
    texts: Sequence[str],
    prompt_file: Path | None,
    image_and_mask: tuple[Path | None, str | None],
    reproduce: Path | None,
    given: Mapping[str, Any],
) -> "tuple[Original | None, list[ImageRequest]]":
    """The images that are asked for, and the original that is reproduced.

    A prompt's own settings win over the options, and those over the original's.
    """
    from ldm.generation.given_images import with_images
    from ldm.generation.prompts import check_installed, parse_prompt, read_prompts
    from ldm.generation.reproduce import read_original
    from ldm.pipeline.batches import list_images

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
    prompts = with_images(prompts, *image_and_mask)
    for prompt in prompts:
        if original:
            original.check_inputs(prompt.inputs)
    return original, list_images(prompt.over(base) for prompt in prompts)


def _scheduler_lines() -> Iterator[str]:
    """A line a sampler: its short name, what others call it, and what is special about it."""
    from ldm.diffusion.scheduler_names import OWN_SCHEDULER, SCHEDULERS

    yield f"{OWN_SCHEDULER:14}the sampler and the settings of the model's own scheduler config"
    for name, entry in SCHEDULERS.items():
        notes = ["adds noise at each step"] if entry.stochastic else []
        if not entry.available:
            notes.append(f"not usable here: needs {entry.requires} (pip install {entry.requires})")
        yield f"{name:14}{entry.title:14}{'; '.join(notes)}".rstrip()
