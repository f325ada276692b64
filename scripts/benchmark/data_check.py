"""What `ldm data check` costs: decoding beside Pillow alone, a second check of many images, memory per sample.

    python -m scripts.benchmark.data_check docs/benchmarks/data-check.json

Times are processor seconds, so that other programs on the machine do not count.
"""

import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms

from ldm.data.decode_apart import decode_one
from ldm.data.sample import FileImage

from .samples import machine
from .workers import peak_bytes

ROUNDS = 5
CASES = {"256 px": (256, 256, 60), "12 megapixels": (4032, 3024, 3)}
FEW, MANY = 10_000, 50_000


def main(output: Path) -> None:
    """Measure everything, print it, and write it as JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {
            "decoding, times Pillow's": dict(_decoding(folder)),
            "checks": {str(number): _checks(folder, number) for number in (FEW, MANY)},
            "machine": machine(),
        }
    peaks = [found["checks"][str(number)]["peak_bytes"] for number in (FEW, MANY)]
    found["bytes_per_sample"] = round((peaks[1] - peaks[0]) / (MANY - FEW))
    text = json.dumps(found, indent=2) + "\n"
    print(text)
    output.write_text(text)


def _decoding(folder: Path) -> Any:
    """The median of our processor time over Pillow's, for each size, without and with a colour profile."""
    gc.freeze()  # as the processes that decode do
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for case, (width, height, number) in CASES.items():
        photo = Image.effect_noise((width // 8, height // 8), 60).convert("RGB").resize((width, height))
        for kind, options in {"": {}, ", with a profile": {"icc_profile": profile}}.items():
            path = folder / "photo.jpg"
            photo.save(path, quality=92, **options)  # type: ignore[arg-type]
            data = path.read_bytes()
            ratios = []
            for _ in range(ROUNDS):
                theirs = _cpu_sec(partial(_pillow, data), number)
                ours = _cpu_sec(partial(_ours, path), number)
                ratios.append(ours / theirs)
            yield case + kind, sorted(ratios)[ROUNDS // 2]


def _pillow(data: bytes) -> None:
    Image.open(io.BytesIO(data)).load()


def _ours(path: Path) -> None:
    decode_one(FileImage(path), {})


def _cpu_sec(work: Callable[[], object], number: int) -> float:
    start = time.process_time()
    for _ in range(number):
        work()
    return time.process_time() - start


def _checks(folder: Path, number: int) -> dict[str, Any]:
    """A first and a second check of a folder of that many small images with captions."""
    data, cache = folder / f"data-{number}", folder / f"cache-{number}"
    data.mkdir()
    seed = folder / "seed.jpg"
    Image.effect_noise((48, 48), 60).convert("RGB").save(seed)
    for index in range(number):
        os.link(seed, data / f"{index:06d}.jpg")
        (data / f"{index:06d}.txt").write_text(f"picture number {index}")
    first, _, _ = _check(data, cache)
    second, wall, peak = _check(data, cache)
    return {"first_cpu_sec": first, "again_cpu_sec": second, "again_wall_sec": wall, "peak_bytes": peak}


CHECK = """
import atexit, sys
from pathlib import Path
from ldm.__main__ import main

note = Path(sys.argv.pop())
atexit.register(lambda: note.write_text(Path("/proc/self/status").read_text()))
main()
"""
"""`ldm` that notes its peak memory: what `wait4` reports may be the peak of the process that started it."""


def _check(data: Path, cache: Path) -> tuple[float, float, int]:
    """Processor seconds, seconds, and the peak memory of `ldm data check`."""
    start = time.monotonic()
    note = cache.with_suffix(".peak")
    child = subprocess.Popen(
        [sys.executable, "-c", CHECK, "data", "check", str(data), str(note)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "LDM_CACHE_DIR": str(cache)},
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"ldm data check ended with {child.returncode}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - start, peak_bytes(note.read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
