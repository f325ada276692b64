"""Cold start: from the command to the PNG, against a minimal diffusers script with the same model folder."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .rows import Row, result_of
from .samples import Sample, Setting, busy_cpu_sec, clean_median, machine, num_clean, ratio_of, recorded

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
        samples = run_alternately(
            {
                "ldm generate": [*ldm_command, "generate", "red apple", *options],
                "diffusers": [python, "-c", DIFFUSERS_SCRIPT, model, f"{folder}/theirs.png", steps],
                "ldm --help": [*ldm_command, "--help"],
                "bare python": [python, "-c", "pass"],
            },
            setting.rounds,
        )
    help_sec = clean_median(samples["ldm --help"])
    return result_of(
        "startup",
        [compared(samples, "ldm generate", "diffusers", 1.0), compared(samples, "ldm --help", "bare python")],
        half_a_second_over_help=help_sec and 0.5 / help_sec,
        machine=machine(),
        samples={name: recorded(each) for name, each in samples.items()},
    )


def compared(
    samples: Mapping[str, Sequence[Sample]], ours: str, theirs: str, goal: float | None = None
) -> Row:
    mine, other = samples[ours], samples[theirs]
    clean = num_clean(mine), num_clean(other)
    return Row("cold start to the end", ours, theirs, ratio_of(mine, other), goal, clean, len(mine))


def run_once(command: Sequence[str]) -> Sample:
    """Run a command and measure its time and how much other programs worked.

    Raises:
        RuntimeError: the command failed.
    """
    busy, own, start = busy_cpu_sec(), _children_cpu_sec(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=_as_installed())
    wall = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    own = _children_cpu_sec() - own
    return Sample(wall, own, max(0.0, busy_cpu_sec() - busy - own) / wall)


def _as_installed() -> dict[str, str]:
    """The environment, but with Python's bytecode cache enabled, as for installed packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _children_cpu_sec() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_alternately(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[Sample]]:
    """Run each command once per round, after a first round that only warms the disk cache."""
    samples: dict[str, list[Sample]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            sample = run_once(command)
            if number:
                samples[name].append(sample)
    return samples
