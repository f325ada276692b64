"""The peak memory of generating with each engine, for a model of Stable Diffusion 1.5's size with random weights.

OpenVINO is measured twice: when it converts the network, and when the network is in the cache. The guidance interval
ends halfway, so that the network is called with two numbers of rows.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .memory import own_and_mapped
from .models import SD15, SMALLEST, Shape, make_model
from .samples import machine

GOAL = 1.2
"""OpenVINO's peak over torch's, with the network in the cache; mapped files do not count."""
CASES: dict[str, tuple[Shape, int]] = {"full": (SD15, 512), "quick": (SD15, 256), "smallest": (SMALLEST, 64)}
EVERY_SEC = 0.05
CALL = ("--num-inference-steps", "4", "--guidance-interval", "0", "0.5", "--seed", "1", "--engine")


def engine_memory(scale: str, output: Path | None) -> str:
    """Measure torch, and OpenVINO without and with its cache; returns a table.

    Args:
        output: JSON file for the result.
    """
    shape, size_px = CASES[scale]
    result: dict[str, Any] = {"benchmark": "engine-memory", "goal": GOAL, "size_px": size_px, "peaks": {}}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = make_model(folder, shape, size_px)
        for name in ("torch", "openvino, converting", "openvino"):
            result["peaks"][name] = _measure(model, folder, name.split(",")[0])
    peaks = result["peaks"]
    result["ratio"] = peaks["openvino"]["gb"] / peaks["torch"]["gb"]
    result["machine"] = machine()
    if output:
        output.write_text(json.dumps(result, indent=2, default=str) + "\n")
    lines = [f"{name}: {json.dumps(peak)}" for name, peak in peaks.items()]
    return "\n".join([*lines, f"ratio {result['ratio']:.2f}, goal {GOAL}"])


def _measure(model: Path, folder: Path, engine: str) -> dict[str, float]:
    """The peak memory of a call, its own and with mapped files, in GB, and its seconds."""
    print(f"{engine} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "ldm", "generate", "an apple", "--model", str(model), *CALL, engine]
    environment = {**os.environ, "LDM_CACHE_DIR": str(folder / "cache")}
    began, own, both = time.perf_counter(), 0, 0
    with subprocess.Popen(
        [*command, "--output", str(folder / "images"), "--overwrite"],
        env=environment,
        stdout=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None:
            seen = own_and_mapped(process.pid)
            own, both = max(own, seen[0]), max(both, sum(seen))
            time.sleep(EVERY_SEC)
    if process.returncode:
        raise SystemExit(process.returncode)
    return {"gb": own / 1e9, "gb_with_mapped_files": both / 1e9, "sec": time.perf_counter() - began}
