"""`ldm tune-steps`: find the timesteps with which a sampler needs the fewest steps for a model."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ldm.cli.printer import Printer, reporting

PROMPTS = (
    "a red apple", "a rocket", "a cat face", "a lighthouse", "a sunflower", "a teapot", "a butterfly", "a house",
)  # fmt: skip


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
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the first image.")] = 0,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="cpu or cuda.", show_default=False)
    ] = None,
    *,
    printer: Printer,
) -> None:
    """Find timesteps for few steps, and print them for `ldm generate --timesteps`.

    Half of the images, one of each prompt, are used for the search: their latents should be as near as possible to
    those of 200 steps. The other half, with other seeds, measures the result, and how many steps with the sampler's
    usual spacing are as near.
    """
    from ldm.evaluation.step_tuning import StepMeter, num_tries, starts_for, tune_steps
    from ldm.generation.prompts import read_prompts
    from ldm.io.progress import work_bar
    from ldm.pipeline.pipeline import load_pipeline

    pipeline = load_pipeline(model, device=device)
    name = scheduler or pipeline.defaults.scheduler
    asked = [line.prompt for line in read_prompts(prompts)] if prompts else list(PROMPTS)
    with work_bar("try") as bar:
        done = [0]

        def on_try() -> None:
            done[0] += 1
            bar.show(min(done[0], total), total)

        starts, _ = starts_for(pipeline, name, steps)
        total = num_tries(steps, len(starts)) + steps
        bar.say("images of 200 steps")
        tuned_on, held_out = (
            StepMeter(pipeline, asked, scheduler=name, guidance_scale=guidance_scale, seed=seed + offset)
            for offset in (0, 10**6)
        )
        bar.say("searching")
        found = tune_steps(tuned_on, held_out, steps, on_try)
    timesteps = ",".join(map(str, found.timesteps))
    equal = (
        f"{found.equal_steps} steps" if found.equal_steps else f"more than {max(found.usual_by_steps)} steps"
    )
    printer.result(
        {"scheduler": name, **asdict(found), "timesteps": timesteps},
        f"--scheduler {name} --timesteps {timesteps}",
        f"distance to 200 steps on {len(asked)} held-out images: {found.distance:.4f}; with the usual spacing "
        f"{found.usual:.4f}, which needs {equal} to be as near",
    )
