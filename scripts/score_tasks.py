"""Score a task of drawn scenes: python scripts/score_tasks.py edit --model MODEL --output DIR"""

import argparse
import sys
from pathlib import Path
from typing import Any

from ldm.demos.shapes_quality import MEASURED_TASKS
from ldm.demos.shapes_quality_score import measure_task
from ldm.demos.shapes_tasks_report import run_and_print
from ldm.demos.shapes_tasks_score import SCORED_TASKS, score_task
from ldm.demos.task_cases import OnProgress
from ldm.pipeline.pipeline import load_pipeline


def main() -> int:
    parser = argparse.ArgumentParser(
        description="How well a model of drawn scenes does its task: the share of images that are edited or inpainted "
        "as asked with nothing else changed, or the quality of those that it restores, enlarges or controls."
    )
    parser.add_argument("task", choices=(*SCORED_TASKS, *MEASURED_TASKS))
    parser.add_argument("--model", required=True, help="a run or a model folder trained on drawn shapes")
    parser.add_argument(
        "--output", type=Path, required=True, help="a new folder for the report and the sheets"
    )
    parser.add_argument("--num-cases", type=int, default=200, help="of each part, held out and seen (200)")
    parser.add_argument("--size-px", type=int, default=32, help="side of the images, as in training (32)")
    parser.add_argument(
        "--limits-only",
        action="store_true",
        help="only what needs no denoiser: the autoencoder's round trip and simpler methods",
    )
    parser.add_argument("--lpips", action="store_true", help="also LPIPS; restore and upscale only")
    parser.add_argument("--guidance-scale", type=float, help="instead of the model's default")
    parser.add_argument("--image-guidance-scale", type=float, help="instead of the default; edit only")
    options = parser.parse_args()
    if options.lpips and options.task in SCORED_TASKS:
        parser.error(f"--lpips is not measured for the task {options.task}")
    named = ("guidance_scale", "image_guidance_scale")

    def measure(show: OnProgress) -> dict[str, Any]:
        return (score_task if options.task in SCORED_TASKS else measure_task)(
            load_pipeline(options.model),
            options.task,
            options.output,
            num_cases=options.num_cases,
            size_px=options.size_px,
            limits_only=options.limits_only,
            settings={name: value for name in named if (value := getattr(options, name)) is not None},
            **({"lpips": True} if options.lpips else {}),
            on_progress=show,
        )

    return run_and_print(measure)


if __name__ == "__main__":
    sys.exit(main())
