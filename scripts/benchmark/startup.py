"""Cold start: from the command to the PNG, against a minimal diffusers script on the same folder."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from .sides import compare, machine, run_by_turns, samples_of

DIFFUSERS_SCRIPT = """
import sys
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None)
pipe("red apple", num_inference_steps=20, guidance_scale=2.0).images[0].save(sys.argv[2])
"""


def startup(rounds: int) -> dict[str, Any]:
    """Time `ldm generate`, the diffusers script, `ldm --help` and bare Python, by turns."""
    import ldm

    model = str(Path(ldm.__file__).parent / "assets" / "emoji")
    with tempfile.TemporaryDirectory() as folder:
        python, ldm_command = sys.executable, [sys.executable, "-m", "ldm"]
        options = ["--num-inference-steps", "20", "--guidance-scale", "2", "--output", folder, "--overwrite"]
        sides = run_by_turns(
            {
                "ldm generate": [*ldm_command, "generate", "red apple", *options],
                "diffusers": [python, "-c", DIFFUSERS_SCRIPT, model, f"{folder}/theirs.png"],
                "ldm --help": [*ldm_command, "--help"],
                "bare python": [python, "-c", "pass"],
            },
            rounds,
        )
    return {
        "benchmark": "startup",
        "generate": compare(sides, "ldm generate", "diffusers"),
        "help": {
            "half_a_second_over_help": 0.5 / sides["ldm --help"].median_sec
            if sides["ldm --help"].clean
            else None
        }
        | compare(sides, "ldm --help", "bare python"),
        "machine": machine(),
        "samples": samples_of(sides),
    }
