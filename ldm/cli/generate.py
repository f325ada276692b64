"""`ldm generate`: pictures from prompts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ldm.cli import options
from ldm.cli.generate_processes import count_of, make_in_processes
from ldm.cli.messages import own_warnings
from ldm.errors import UserError
from ldm.io.collector import collector_paused

if TYPE_CHECKING:
    from ldm.generation.job import GenerationJob
    from ldm.generation.pictures import Picture
    from ldm.generation.reproduce import Recipe


def generate(
    prompts: options.Prompts = None,
    prompt_file: options.PromptFile = None,
    from_image: options.FromImage = None,
    model: options.Model = None,
    lora: options.Lora = None,
    output: options.Output = Path("outputs"),
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    grid: options.Grid = False,
    seed: options.Seed = None,
    num_images: options.NumImages = None,
    num_inference_steps: options.NumInferenceSteps = None,
    guidance_scale: options.GuidanceScale = None,
    guidance_rescale: options.GuidanceRescale = None,
    guidance_interval: options.GuidanceInterval = None,
    deep_features_every: options.DeepFeaturesEvery = None,
    preset: options.Preset = None,
    negative_prompt: options.NegativePrompt = None,
    max_prompt_chunks: options.MaxPromptChunks = None,
    scheduler: options.Scheduler = None,
    karras: options.Karras = None,
    height: options.Height = None,
    width: options.Width = None,
    batch_size: options.BatchSize = None,
    num_processes: options.NumProcesses = 1,
    low_memory: options.LowMemory = False,
    engine: options.Engine = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    compile: options.Compile = False,
) -> None:
    """Make pictures from prompts, and print the path of each.

    Settings that are left out come from the model. Every picture holds its settings, for other programs
    (`parameters`) and for --from-image.
    """
    if scheduler == "list":
        typer.echo("\n".join(_scheduler_lines()))
        return
    with collector_paused():
        from ldm.generation.batches import write_grid
        from ldm.generation.job import GenerationJob
        from ldm.generation.model_options import ModelOptions, read_batch_size
        from ldm.generation.pictures import Target

    given = dict(
        seed=seed,
        num_images=num_images,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        guidance_interval=guidance_interval,
        deep_features_every=deep_features_every,
        preset=preset,
        negative_prompt=negative_prompt,
        max_prompt_chunks=max_prompt_chunks,
        scheduler=scheduler,
        karras=karras,
        height=height,
        width=width,
    )
    recipe, pictures = _plan(prompts or [], prompt_file, from_image, given)
    target = Target(output, overwrite=overwrite, grid=grid, resume=resume)
    target.check(pictures)
    at_once = read_batch_size(batch_size, low_memory=low_memory, device=device)
    means = ModelOptions(model, tuple(lora or ()), engine, device, dtype, low_memory, at_once, compile)
    order = GenerationJob(tuple(pictures), target, means, recipe)
    num_processes = min(num_processes, len(order.batches))
    if num_processes > 1:
        make_in_processes(order, num_processes)
    else:
        _make(order)
    if grid:
        write_grid(pictures, target)
    for path in target.paths(pictures):
        typer.echo(path)


def _plan(
    texts: Sequence[str], prompt_file: Path | None, from_image: Path | None, given: dict[str, Any]
) -> "tuple[Recipe | None, list[Picture]]":
    """The pictures that are asked for, and the PNG they come from: a line's own settings before the options,
    and those before the PNG's.
    """
    from ldm.config import validate
    from ldm.generation.pictures import list_pictures
    from ldm.generation.prompts import PictureSettings, Prompt, check_scheduler, read_prompts
    from ldm.generation.reproduce import read_recipe

    if given["scheduler"] is not None:
        check_scheduler(given["scheduler"])
    base = validate(PictureSettings, given, where="options")
    recipe = read_recipe(from_image) if from_image else None
    prompts = [validate(Prompt, {"prompt": text}, where="argument") for text in texts]
    prompts += read_prompts(prompt_file) if prompt_file else []
    if recipe:
        base = PictureSettings(**{**recipe.settings.given(), **base.given()})
        prompts = prompts or [Prompt(prompt=recipe.prompt.prompt)]
    if not prompts:
        raise UserError("no prompt", 'write one, such as ldm generate "a red apple"')
    return recipe, list_pictures([prompt.over(base) for prompt in prompts])


def _make(order: "GenerationJob") -> None:
    """Make the pictures in this process."""
    from ldm.generation.job import run_rank
    from ldm.io.progress import work_bar

    num_written = 0
    try:
        with work_bar("step") as bar, own_warnings():
            for _ in run_rank(order, say=bar.say, on_progress=bar.show):
                num_written += 1
    except KeyboardInterrupt:
        written = f"{num_written} of {count_of(order)} written to {order.target.folder}"
        raise KeyboardInterrupt(f"stopped; {written}") from None


def _scheduler_lines() -> Iterator[str]:
    """A line a sampler: its short name, what others call it, and what is to be known of it."""
    from ldm.diffusion.scheduler_names import SCHEDULERS

    for name, entry in SCHEDULERS.items():
        notes = ["adds noise at each step"] if entry.stochastic else []
        if not entry.available:
            notes.append(f"not usable here: needs {entry.requires} (pip install {entry.requires})")
        yield f"{name:14}{entry.title:14}{'; '.join(notes)}".rstrip()
