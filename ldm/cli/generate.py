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
    lora: options.Lora = None,
    output: options.Output = Path("outputs"),
    overwrite: options.Overwrite = False,
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
    scheduler: options.Scheduler = None,
    karras: options.Karras = None,
    height: options.Height = None,
    width: options.Width = None,
    batch_size: options.BatchSize = None,
    low_memory: options.LowMemory = False,
    engine: options.Engine = None,
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
        guidance_interval=guidance_interval,
        deep_features_every=deep_features_every,
        preset=preset,
        negative_prompt=negative_prompt,
        scheduler=scheduler,
        karras=karras,
        height=height,
        width=width,
    )
    recipe, pictures = _plan(prompts or [], prompt_file, from_image, given)
    target = Target(output, overwrite=overwrite, grid=grid)
    target.check(pictures)
    batch_size = batch_size or (1 if low_memory else 8)
    means = Means(model, tuple(lora or ()), engine, device, dtype, low_memory, batch_size)
    _make(pictures, target, means, recipe)
    for path in target.paths(pictures):
        typer.echo(path)


@dataclass(frozen=True)
class Means:
    """What the pictures are made with."""

    model: str | None
    loras: tuple[str, ...]
    engine: str | None
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


def _make(pictures: "list[Picture]", target: "Target", means: Means, recipe: "Recipe | None") -> None:
    """Load the model, make the pictures and write them."""
    from ldm.cli.progress import work_bar
    from ldm.generation.batches import write_pictures

    count, num_written = f"{len(pictures)} picture{'s' if len(pictures) > 1 else ''}", 0
    try:
        with work_bar("step") as bar, own_warnings():
            bar.say("loading the model")
            pipeline = _load(means, recipe, pictures)
            bar.say(count)
            written = write_pictures(
                pipeline, pictures, target, batch_size=means.batch_size, on_progress=bar.show
            )
            for _ in written:
                num_written += 1
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {num_written} of {count} written to {target.folder}") from None


def _load(means: Means, recipe: "Recipe | None", pictures: "list[Picture]") -> "Pipeline":
    """The model, which must be the one that made the picture unless another was named.

    Raises:
        UserError: there is no such model or LoRA, or it has other weights than the recipe says, or the engine
            cannot be used.
    """
    from ldm.engine_choice import choose_engine
    from ldm.generation.batches import work_of
    from ldm.pipeline import load_pipeline

    model = means.model or (recipe.model() if recipe else "emoji")
    dtype = means.dtype or (recipe.dtype if recipe else None)
    loras = _loras(means, recipe)
    pipeline = load_pipeline(model, loras=loras, device=means.device, dtype=dtype)
    pipeline.low_memory = means.low_memory
    if recipe:
        _check_weights(recipe, pipeline.weights_hash, named=means.model is not None)
    engine = means.engine or (recipe.engine if recipe else "torch")
    pipeline.engine = choose_engine(engine, pipeline.denoiser, work_of(pipeline, pictures))
    return pipeline


def _loras(means: Means, recipe: "Recipe | None") -> "list[tuple[Path, float]]":
    """The LoRAs that are given, which must be those of the recipe unless others are named."""
    from ldm.generation.recipe import GivenLora, weigh_loras
    from ldm.loras import lora_hash, split_weight

    named = [split_weight(text) for text in means.loras]
    given = [GivenLora(path, lora_hash(path), weight) for path, weight in named]
    fault = recipe.missing_loras(given) if recipe else ""
    if fault and not given:
        raise UserError(fault, "say where it lies with --lora FILE")
    if fault:
        typer.echo(f"warning: {fault}, so the picture will be another one", err=True)
    return weigh_loras(recipe, given)


def _check_weights(recipe: "Recipe", weights_hash: str | None, *, named: bool) -> None:
    """Other weights make another picture: an error, or a warning where the user named the model."""
    fault = recipe.mismatch(weights_hash)
    if fault and not named:
        raise UserError(fault, "name the model that made it with --model")
    if fault:
        typer.echo(f"warning: {fault}, so the picture will be another one", err=True)


@contextmanager
def own_warnings() -> Iterator[None]:
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
