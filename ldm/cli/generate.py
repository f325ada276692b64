"""`ldm generate`: pictures from prompts."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ldm.cli import options
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.generation.pictures import Picture, Target
    from ldm.generation.recipe import Recipe
    from ldm.pipeline import Pipeline


def generate(
    prompts: options.Prompts = None,
    prompt_file: options.PromptFile = None,
    from_image: options.FromImage = None,
    model: options.Model = None,
    output: options.Output = Path("outputs"),
    overwrite: options.Overwrite = False,
    grid: options.Grid = False,
    seed: options.Seed = None,
    num_images: options.NumImages = None,
    num_inference_steps: options.NumInferenceSteps = None,
    guidance_scale: options.GuidanceScale = None,
    guidance_rescale: options.GuidanceRescale = None,
    negative_prompt: options.NegativePrompt = None,
    scheduler: options.Scheduler = None,
    karras: options.Karras = None,
    height: options.Height = None,
    width: options.Width = None,
    batch_size: options.BatchSize = None,
    low_memory: options.LowMemory = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Make pictures from prompts, and print the path of each.

    Settings that are left out come from the model. Every picture holds its settings, for other programs
    (`parameters`) and for --from-image.
    """
    if scheduler == "list":
        typer.echo("\n".join(_scheduler_lines()))
        return
    from ldm.generation.pictures import Target

    given = dict(
        seed=seed,
        num_images=num_images,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        negative_prompt=negative_prompt,
        scheduler=scheduler,
        karras=karras,
        height=height,
        width=width,
    )
    recipe, pictures = _plan(prompts or [], prompt_file, from_image, given)
    target = Target(output, overwrite=overwrite, grid=grid)
    target.check(pictures)
    engine = Engine(model, device, dtype, low_memory, batch_size or (1 if low_memory else 8))
    _make(pictures, target, engine, recipe)
    for path in target.paths(pictures):
        typer.echo(path)


@dataclass(frozen=True)
class Engine:
    """What the pictures are made with."""

    model: str | None
    device: str | None
    dtype: str | None
    low_memory: bool
    batch_size: int


def _plan(
    texts: Sequence[str], prompt_file: Path | None, from_image: Path | None, given: dict[str, Any]
) -> "tuple[Recipe | None, list[Picture]]":
    """The pictures that are asked for, and the PNG they come from: a line's own settings before the options,
    and those before the PNG's.
    """
    from ldm.config import validate
    from ldm.generation.pictures import list_pictures
    from ldm.generation.prompts import PictureSettings, Prompt, check_scheduler, read_prompts
    from ldm.generation.recipe import read_recipe

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


def _make(pictures: "list[Picture]", target: "Target", engine: Engine, recipe: "Recipe | None") -> None:
    """Load the model, make the pictures and write them."""
    from ldm.cli.progress import work_bar
    from ldm.generation.batches import write_pictures

    count, num_written = f"{len(pictures)} picture{'s' if len(pictures) > 1 else ''}", 0
    try:
        with work_bar("step") as bar, _own_warnings():
            bar.say("loading the model")
            pipeline = _load(engine, recipe)
            bar.say(count)
            written = write_pictures(
                pipeline, pictures, target, batch_size=engine.batch_size, on_progress=bar.show
            )
            for _ in written:
                num_written += 1
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {num_written} of {count} written to {target.folder}") from None


def _load(engine: Engine, recipe: "Recipe | None") -> "Pipeline":
    """The model, which must be the one that made the picture unless another was named.

    Raises:
        UserError: there is no such model, or it has other weights than the recipe says.
    """
    from ldm.pipeline import load_pipeline

    model = engine.model or (recipe.model() if recipe else "emoji")
    dtype = engine.dtype or (recipe.dtype if recipe else None)
    pipeline = load_pipeline(model, device=engine.device, dtype=dtype)
    pipeline.low_memory = engine.low_memory
    if recipe:
        _check_weights(recipe, pipeline.weights_hash, named=engine.model is not None)
    return pipeline


def _check_weights(recipe: "Recipe", weights_hash: str | None, *, named: bool) -> None:
    """Other weights make another picture: an error, or a warning where the user named the model."""
    fault = recipe.mismatch(weights_hash)
    if fault and not named:
        raise UserError(fault, "name the model that made it with --model")
    if fault:
        typer.echo(f"warning: {fault}, so the picture will be another one", err=True)


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Say our warnings in a line each, once; those of the libraries are not for the user of a command."""
    from ldm.pipeline import LdmWarning

    said: set[str] = set()

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        if str(message) not in said:
            said.add(str(message))
            typer.echo(f"warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", LdmWarning)
        warnings.showwarning = show
        yield


def _scheduler_lines() -> Iterator[str]:
    """A line a sampler: its short name, what others call it, and what is to be known of it."""
    from ldm.scheduler_names import SCHEDULERS

    for name, entry in SCHEDULERS.items():
        notes = ["adds noise at each step"] if entry.stochastic else []
        if not entry.available:
            notes.append(f"not usable here: needs {entry.requires} (pip install {entry.requires})")
        yield f"{name:14}{entry.title:14}{'; '.join(notes)}".rstrip()
