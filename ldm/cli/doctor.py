"""`ldm doctor`: whether everything that this program needs is here and loads."""

import os
import platform
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ldm.errors import UserError
from ldm.io.disk import free_bytes
from ldm.version import __version__

if TYPE_CHECKING:
    import torch

NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "open_clip_torch": "open_clip",
    "accelerate": "accelerate",
    "datasets": "datasets",
    "peft": "peft",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface_hub",
    "numpy": "numpy",
    "Pillow": "PIL",
    "matplotlib": "matplotlib",
    "pydantic": "pydantic",
    "PyYAML": "yaml",
}
"""Packages by the name they are installed under, and the name they are imported by."""

OPTIONAL = {
    "xformers": ("xformers", "memory-efficient attention on CUDA"),
    "openvino": ("openvino", "fast generation on Intel processors"),
    "bitsandbytes": ("bitsandbytes", "the optimizer with eight-bit moments"),
    "tensorboard": ("tensorboard", "the tracker tensorboard"),
    "wandb": ("wandb", "the tracker wandb"),
    "torchsde": ("torchsde", "the scheduler dpmpp_sde"),
    "scipy": ("scipy", "the scheduler lms"),
}
"""Packages that only some options need."""


def doctor() -> None:
    """Say what is installed and loads, and what the computer has.

    On each device a small attention is computed with each kernel, so that those named are those that work.

    Exit code 2 when something that is needed does not load.
    """
    typer.echo(f"ldm {__version__}, Python {platform.python_version()}, {platform.platform()}")
    broken = []
    for package, module in NEEDED.items():
        fault = _fault(module)
        typer.echo(f"{package:18}{_version(package):18}{fault or 'loads'}")
        if fault:
            broken.append(package)
    for package, (module, purpose) in OPTIONAL.items():
        typer.echo(f"{package:18}{_version(package):18}{_fault(module) or 'loads'} (optional: {purpose})")
    for line in [*_devices(broken), *_computer(broken), _embedded_model()]:
        typer.echo(line)
    if broken:
        raise UserError(f"{', '.join(broken)} cannot be loaded", "install the versions in constraints.txt")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def _fault(module: str) -> str:
    """Why a module cannot be imported, or an empty string; a wrong pair of packages can raise anything."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # openvino reports its import by it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(module)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == module else f"broken: {error}"
    except Exception as error:
        return f"broken: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
    return ""


def _devices(broken: list[str]) -> Iterator[str]:
    """Each device, and under it the attention kernels that work there."""
    if "torch" in broken:
        return
    import torch

    yield f"cpu: {platform.machine()}, {torch.get_num_threads()} threads"
    yield _attention_line(torch.device("cpu"))
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.1f} GiB"
        yield _attention_line(torch.device("cuda", index))
    if torch.backends.mps.is_available():
        yield "mps: Apple GPU"
        yield _attention_line(torch.device("mps"))


def _attention_line(device: "torch.device") -> str:
    from ldm.models.attention import xformers_fault

    works = sdpa_kernels(device)
    if device.type == "cuda" and xformers_fault(device) is None:
        works.append("xformers")
    return f"attention on {device}: {', '.join(works) or 'nothing works'}"


def sdpa_kernels(device: "torch.device") -> list[str]:
    """The kernels of torch's scaled_dot_product_attention that run on a device and give what its definition gives."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    # the fused ones of CUDA take halves only
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    query = torch.linspace(-1, 1, 2 * 2 * 16 * 32, dtype=torch.float64).view(2, 2, 16, 32)
    expected = (query @ query.mT / 32**0.5).softmax(-1) @ query
    works = []
    for name in ("MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        value = query.to(device=device, dtype=dtype)
        try:
            with warnings.catch_warnings(), sdpa_kernel([getattr(SDPBackend, name)]):
                warnings.simplefilter("ignore")  # torch says at length why a kernel does not do
                output = scaled_dot_product_attention(value, value, value).cpu().double()
        except (RuntimeError, AttributeError):
            continue
        if torch.allclose(output, expected, atol=1e-2):
            works.append(name.removesuffix("_ATTENTION").lower())
    return works


def _computer(broken: list[str]) -> Iterator[str]:
    """Cores, memory and free disk."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield f"cores: {cores}"
    memory = _memory_bytes()
    if memory:
        yield f"memory: {memory / 2**30:.1f} GiB"
    folders = {"this folder": Path.cwd()}
    if not broken:
        from ldm.data.cache.cache_folder import cache_root

        folders["the cache"] = cache_root()
    for name, folder in folders.items():
        yield f"free disk of {name}: {free_bytes(folder) / 1e9:.1f} GB ({folder})"


def _memory_bytes() -> int:
    """The memory that this process may have: the computer's, or the smaller limit of its container; 0 if unknown."""
    names = getattr(os, "sysconf_names", {})
    known = {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= names.keys()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else 0
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _embedded_model() -> str:
    folder = Path(__file__).parent.parent / "assets" / "emoji"
    if not (folder / "model_index.json").is_file():
        return "embedded model emoji: not in this installation"
    size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"embedded model emoji: {size_bytes / 1e6:.1f} MB"
