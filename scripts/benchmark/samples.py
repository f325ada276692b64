"""Timing samples of a side, whether other programs disturbed them, and the statistics of clean ones."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

MAX_FOREIGN_CORES = 0.25
"""A sample is clean if other programs used fewer cores than this at the same time."""
MIN_CLEAN = 5
"""With fewer clean samples per side there is no verdict."""

Scale = Literal["full", "quick", "smallest"]
"""How much work a benchmark does: "full", for which the goals are; "quick", with fewer steps; "smallest", a test."""


@dataclass(frozen=True)
class Setting:
    """How a benchmark is run.

    Attributes:
        rounds: samples per side.
        device: cpu or cuda.
        script: diffusers' published training script, or None for our loop with the same calls.
        model: the model that `generate` measures instead of its own; a name or folder as for `ldm generate`.
        case: `generate` measures the cases whose name contains this.
        side: `generate` measures this side alone, beside diffusers.
        num_steps: of sampling in `generate`, instead of each case's own.
    """

    rounds: int = 9
    scale: Scale = "full"
    device: str = "cpu"
    script: Path | None = None
    model: str | None = None
    case: str = ""
    side: str = ""
    num_steps: int | None = None


@dataclass(frozen=True)
class Sample:
    """One turn of one side.

    Attributes:
        foreign_cores: cores that other programs used at the same time.
        details: durations of parts of it in seconds, by name.
    """

    wall_sec: float
    own_cpu_sec: float
    foreign_cores: float
    details: dict[str, float] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        return self.foreign_cores < MAX_FOREIGN_CORES


class Clock:
    """Timestamps on a device. On CUDA they are events, which are recorded when the preceding work is done."""

    def __init__(self, device: str = "cpu") -> None:
        self._cuda = device.startswith("cuda")

    def now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        import torch

        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def finish(self) -> None:
        """Wait until the device has done all its work."""
        if self._cuda:
            import torch

            torch.cuda.synchronize()

    def between(self, start: Any, end: Any) -> float:
        """Seconds between two timestamps; on CUDA call `finish` first."""
        return float(start.elapsed_time(end) / 1000 if self._cuda else end - start)


class Stopwatch:
    """Starts when it is created; `sample` gives the elapsed time and how much other programs worked."""

    def __init__(self, device: str = "cpu") -> None:
        self._clock = Clock(device)
        self._clock.finish()
        self._busy, self._own, self._wall = busy_cpu_sec(), time.process_time(), time.perf_counter()
        self._start = self._clock.now()

    def sample(self, times: int = 1, details: dict[str, float] | None = None) -> Sample:
        """The sample of one of `times` equal pieces of work."""
        end = self._clock.now()
        self._clock.finish()
        elapsed, own = time.perf_counter() - self._wall, time.process_time() - self._own
        foreign = max(0.0, busy_cpu_sec() - self._busy - own) / elapsed
        wall = self._clock.between(self._start, end)
        return Sample(wall / times, own / times, foreign, details or {})


def timed(times: int, work: Callable[[int], Any]) -> Sample:
    """Call `work(0)` to `work(times - 1)`; returns the sample of one call."""
    watch = Stopwatch()
    for number in range(times):
        work(number)
    return watch.sample(times)


def busy_cpu_sec() -> float:
    """CPU seconds used by all cores since the machine started, from /proc/stat."""
    fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


def clean_median(samples: Sequence[Sample], detail: str | None = None) -> float | None:
    """The median wall time of the clean samples, or of one of their details, in seconds; None with too few of them."""
    clean = [sample for sample in samples if sample.clean]
    found = [each.wall_sec if detail is None else each.details.get(detail) for each in clean]
    known = [value for value in found if value is not None]
    return statistics.median(known) if len(known) >= MIN_CLEAN else None


def ratio_of(ours: Sequence[Sample], theirs: Sequence[Sample]) -> float | None:
    """theirs / ours, from the medians of clean samples: above 1 if ours is faster; None without a verdict."""
    mine, other = clean_median(ours), clean_median(theirs)
    return None if mine is None or other is None else other / mine


def num_clean(samples: Sequence[Sample]) -> int:
    return sum(sample.clean for sample in samples)


def recorded(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """All samples, clean or not, ready for JSON."""
    return [asdict(sample) for sample in samples]


def machine() -> dict[str, Any]:
    """The hardware and versions that the numbers were measured with."""
    import torch

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "processor": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "diffusers", "openvino")},
        **gpu,
    }


def _processor() -> str:
    """The processor's name as Linux has it; elsewhere the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def matmul_gflops(device: str = "cpu", size: int = 2048, repeats: int = 5) -> float:
    """The best rate of a square matrix multiplication on this machine, in 10^9 operations per second.

    In float32 on the CPU and bfloat16 on CUDA, like the sides. On a CPU, torch has two libraries for it, one for
    matrices and one for convolutions (a 1 x 1 convolution is the same computation); the faster one counts.
    """
    import torch

    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    kernel, image = matrix.view(size, size, 1, 1), matrix.view(1, size, size, 1)
    ways = (lambda: matrix @ matrix, lambda: torch.nn.functional.conv2d(image, kernel))
    clock, taken = Clock(device), []
    for number in range(len(ways) * (repeats + 1)):
        start = clock.now()
        ways[number % len(ways)]()
        end = clock.now()
        clock.finish()
        taken.append(clock.between(start, end))
    return 2e-9 * size**3 / min(taken[len(ways) :])
