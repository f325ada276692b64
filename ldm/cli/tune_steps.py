"""`ldm tune-steps`: find the timesteps with which a sampler needs the fewest steps for a model."""

from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm.cli.printer import Printer, reporting

if TYPE_CHECKING:
    from ldm.evaluation.step_tuning import TunedSteps
    from ldm.pipeline.pipeline import Pipeline

PROMPTS = (
    "a red apple", "a rocket", "a cat face", "a lighthouse", "a sunflower", "a teapot", "a butterfly", "a house",
)  # fmt: skip

HELD_OUT_SEEDS = 10**6
"""Added to the seed for the images that the search does not see."""


@reporting
def tune_steps(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="emoji, a folder, a run, a file or a Hub id.")
    ],
    steps: Annotated[int, typer.Option(min=2, max=100, metavar="N", help="The number of steps to tune.")] = 8,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A sampler that adds no noise.  [default: the model's]", show_default=False
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=0, metavar="X", help="[default: the model's]", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts, one a line, or as of `ldm generate`.  [default: eight simple ones]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="The seed of the first image.")] = 0,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where to compute: cpu or cuda.", show_default=False)
    ] = None,
    *,
    printer: Printer,
) -> None:
    """Find timesteps for few steps, and print them for `ldm generate --timesteps`.

    Half of the images, one of each prompt, are used for the search: their latents should be as near as possible to
    those of 200 steps. The other half, with other seeds, measures the result, and how many steps with the sampler's
    usual spacing are as near.
    """
    from ldm.generation.prompts import read_prompts
    from ldm.pipeline.pipeline import load_pipeline

    pipeline = load_pipeline(model, device=device)
    name = scheduler or pipeline.defaults.scheduler
    asked = [line.prompt for line in read_prompts(prompts)] if prompts else list(PROMPTS)
    found = _tuned(pipeline, asked, name, guidance_scale, seed, steps)
    timesteps = ",".join(map(str, found.timesteps))
    equal = f"{found.equal_steps}" if found.equal_steps else f"more than {max(found.usual_by_steps)}"
    printer.result(
        {"scheduler": name, **asdict(found), "timesteps": timesteps},
        f"--scheduler {name} --timesteps {timesteps}",
        f"distance to {found.reference_steps} steps on {len(asked)} held-out images: {found.distance:.4f}; with the "
        f"usual spacing {found.usual:.4f}, which needs {equal} steps to be as near",
    )


def _tuned(
    pipeline: "Pipeline",
    prompts: list[str],
    scheduler: str,
    guidance_scale: float | None,
    seed: int,
    steps: int,
) -> "TunedSteps":
    """Search and measure, with a progress bar."""
    from ldm.evaluation.step_tuning import StepMeter, num_tries, starts_for, tune_steps
    from ldm.io.progress import work_bar

    starts, _ = starts_for(pipeline, scheduler, steps)
    total, done = num_tries(steps, len(starts)), count(1)
    with work_bar("try") as bar:
        bar.say("images of many steps")
        tuned_on, held_out = (
            StepMeter(
                pipeline, prompts, scheduler=scheduler, guidance_scale=guidance_scale, seed=seed + offset
            )
            for offset in (0, HELD_OUT_SEEDS)
        )
        bar.say("searching")
        return tune_steps(tuned_on, held_out, steps, lambda: bar.show(min(next(done), total), total))
