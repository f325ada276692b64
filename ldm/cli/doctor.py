"""`ldm doctor`: whether everything that this program needs is here and loads."""

import platform
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from ldm.errors import UserError
from ldm.version import __version__

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
    "pydantic": "pydantic",
    "PyYAML": "yaml",
}
"""Packages by the name they are installed under, and the name they are imported by."""

OPTIONAL = {
    "xformers": ("xformers", "memory-efficient attention on CUDA"),
    "openvino": ("openvino", "fast generation on Intel processors"),
    "gradio": ("gradio", "the browser page"),
    "torchsde": ("torchsde", "the scheduler dpmpp_sde"),
    "scipy": ("scipy", "the scheduler lms"),
}
"""Packages that only some options need."""


def doctor() -> None:
    """Say what is installed, whether it loads, and on what devices.

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
    for line in [*_devices(broken), _embedded_model()]:
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
    if "torch" in broken:
        return
    import torch

    yield f"cpu: {platform.machine()}, {torch.get_num_threads()} threads"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.1f} GiB"
    if torch.backends.mps.is_available():
        yield "mps: Apple GPU"


def _embedded_model() -> str:
    folder = Path(__file__).parent.parent / "assets" / "emoji"
    if not (folder / "model_index.json").is_file():
        return "embedded model emoji: not in this installation"
    size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"embedded model emoji: {size_bytes / 1e6:.1f} MB"
