"""Cold start: from the command to the PNG, against a minimal diffusers script with the same model folder."""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .rows import Row, result_of
from .samples import Setting, clean_median, machine, num_clean, ratio_of
from .sides import Side, run_by_turns, samples_of

DIFFUSERS_SCRIPT = """
import sys
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None)
pipe("red apple", num_inference_steps=int(sys.argv[3]), guidance_scale=2.0).images[0].save(sys.argv[2])
"""


def startup(setting: Setting) -> dict[str, Any]:
    """Time `ldm generate`, the diffusers script, `ldm --help` and bare Python alternately."""
    import ldm

    model = str(Path(ldm.__file__).parent / "assets" / "emoji")
    steps = "1" if setting.scale == "smallest" else "20"
    with tempfile.TemporaryDirectory() as folder:
        python, ldm_command = sys.executable, [sys.executable, "-m", "ldm"]
        options = ["--num-inference-steps", steps, "--guidance-scale", "2", "--output", folder, "--overwrite"]
        sides = run_by_turns(
            {
                "ldm generate": [*ldm_command, "generate", "red apple", *options],
                "diffusers": [python, "-c", DIFFUSERS_SCRIPT, model, f"{folder}/theirs.png", steps],
                "ldm --help": [*ldm_command, "--help"],
                "bare python": [python, "-c", "pass"],
            },
            setting.rounds,
        )
    help_sec = clean_median(sides["ldm --help"].samples)
    return result_of(
        "startup",
        [compared(sides, "ldm generate", "diffusers", 1.0), compared(sides, "ldm --help", "bare python")],
        half_a_second_over_help=help_sec and 0.5 / help_sec,
        machine=machine(),
        samples=samples_of(sides),
    )


def compared(sides: Mapping[str, Side], ours: str, theirs: str, goal: float | None = None) -> Row:
    mine, other = sides[ours].samples, sides[theirs].samples
    clean = num_clean(mine), num_clean(other)
    return Row("cold start to the end", ours, theirs, ratio_of(mine, other), goal, clean, len(mine))
