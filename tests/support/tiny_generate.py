"""A saved tiny model, and calls of `ldm generate` with it."""

from pathlib import Path

from typer.testing import CliRunner, Result

from ldm.cli.app import app
from ldm.generation.job import GenerationJob
from ldm.generation.model_options import ModelOptions
from ldm.generation.output import Target
from ldm.pipeline.batches import Prompt, list_images
from ldm.pipeline.pipeline import Pipeline
from tests.support.tiny_models import make_large_images, make_sd1


def save_model(folder: Path) -> Path:
    """Save a tiny model inside `folder`; returns its folder."""
    Pipeline(make_sd1(folder / "tokenizer")).save(folder / "one")
    return folder / "one"


def save_model_of_large_images(folder: Path) -> Path:
    """The same with images of 256 x 256 pixels, which take no longer."""
    Pipeline(make_large_images(folder / "tokenizer")).save(folder / "large")
    return folder / "large"


def generate(*arguments: object) -> Result:
    """Call the command in this process; exceptions other than SystemExit are raised."""
    result = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def job_of(
    model: Path, *prompts: str, output: str = "outputs", resume: bool = False, **options: object
) -> GenerationJob:
    """An image of each prompt, in batches of one unless `batch_size` is among the options."""
    images = list_images([Prompt(text) for text in prompts])
    made_with = ModelOptions(str(model), **{"batch_size": 1, **options})  # type: ignore[arg-type]
    return GenerationJob(tuple(images), Target(Path(output), resume=resume), made_with)


def files(folder: str) -> dict[str, bytes]:
    """The files of a folder by name."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
