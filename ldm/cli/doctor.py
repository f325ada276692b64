"""`ldm doctor`: whether the packages that this program needs are installed and load."""

import os
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.printer import Printer, reporting
from ldm.errors import UserError
from ldm.io.files import free_bytes
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
    "pyarrow": "pyarrow",
    "peft": "peft",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "huggingface_hub": "huggingface_hub",
    "Jinja2": "jinja2",
    "MarkupSafe": "markupsafe",
    "filelock": "filelock",
    "numpy": "numpy",
    "Pillow": "PIL",
    "matplotlib": "matplotlib",
    "pydantic": "pydantic",
    "PyYAML": "yaml",
    "typer": "typer",
    "rich": "rich",
}
"""Required packages: the name on PyPI, and the name to import."""

OPTIONAL = {
    "xformers": ("xformers", "memory-efficient attention on CUDA"),
    "openvino": ("openvino", "fast generation on Intel processors"),
    "pillow-heif": ("pillow_heif", "HEIC images, as phones take them"),
    "starlette": ("starlette", "the page and the HTTP interface of `ldm serve`"),
    "uvicorn": ("uvicorn", "the same"),
    "python-multipart": ("python_multipart", "the same"),
    "bitsandbytes": ("bitsandbytes", "the optimizer with eight-bit moments"),
    "prodigyopt": ("prodigyopt", "the optimizer that finds its learning rate"),
    "tensorboard": ("tensorboard", "the tracker tensorboard"),
    "wandb": ("wandb", "the tracker wandb"),
    "torchsde": ("torchsde", "the scheduler dpmpp_sde"),
    "scipy": ("scipy", "the scheduler lms"),
}
"""Optional packages: the name to import, and what they are for."""


@reporting
def doctor(*, printer: Printer) -> None:
    """Check the installed packages, and describe this computer.

    On each device a small attention is computed with each kernel, so the kernels listed are those that work.

    Exit code 2 if a required package does not load.
    """
    facts = examine()
    printer.result(facts, *_lines(facts))
    if broken := _broken(facts["packages"]):
        raise UserError(f"{', '.join(broken)} cannot be loaded", "install the versions in constraints.txt")


def examine() -> dict[str, Any]:
    """What `ldm doctor` says, ready for JSON."""
    packages = {package: _package(package, module) for package, module in NEEDED.items()}
    packages |= {
        package: _package(package, module, purpose) for package, (module, purpose) in OPTIONAL.items()
    }
    broken = _broken(packages)
    return {
        "ldm": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "devices": [] if "torch" in broken else list(_devices()),
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "free_disk": _free_disk(cache=not broken),
        "embedded_model_bytes": _embedded_model_bytes(),
        "installation": _installation(),
    }


def _package(package: str, module: str, purpose: str | None = None) -> dict[str, str | None]:
    """Version, fault (None if it loads), and for optional packages what they are for."""
    return {"version": _version(package), "fault": _fault(module) or None, "optional_for": purpose}


def _broken(packages: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    return [name for name, one in packages.items() if one["fault"] and one["optional_for"] is None]


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """`examine` as text."""
    yield f"ldm {facts['ldm']}, Python {facts['python']}, {facts['platform']}"
    for name, package in facts["packages"].items():
        purpose = package["optional_for"]
        optional = f" (optional: {purpose})" if purpose else ""
        yield f"{name:18}{package['version'] or '-':18}{package['fault'] or 'loads'}{optional}"
    gpus = [device for device in facts["devices"] if device["name"] != "cpu"]
    yield f"GPU: {', '.join(device['description'] for device in gpus) or 'none that torch can use'}"
    for device in facts["devices"]:
        yield f"{device['name']}: {device['description']}"
        yield f"attention on {device['name']}: {', '.join(device['attention']) or 'nothing works'}"
    yield f"cores: {facts['num_cores']}"
    if facts["memory_bytes"]:
        yield f"memory: {facts['memory_bytes'] / 2**30:.1f} GiB"
    for name, disk in facts["free_disk"].items():
        yield f"free disk space for {name}: {disk['free_bytes'] / 1e9:.1f} GB ({disk['folder']})"
    size_bytes = facts["embedded_model_bytes"]
    size = "not in this installation" if size_bytes is None else f"{size_bytes / 1e6:.1f} MB"
    yield f"embedded model emoji: {size}"
    place = facts["installation"]
    yield f"installed packages: {place['total_bytes'] / 1e9:.1f} GB ({place['folder']})"
    if place["cuda_bytes"] and not gpus:
        size = f"{place['cuda_bytes'] / 1e9:.1f} GB"
        yield f"of these, {size} are CUDA libraries, which a CPU does not need: see docs/guides/install.md"


def _installation() -> dict[str, Any]:
    """How much space the installed packages take, and how much of it CUDA's libraries."""
    folder = Path(sysconfig.get_path("purelib"))
    cuda = [folder / "nvidia", folder / "triton"]
    return {
        "folder": str(folder),
        "total_bytes": _folder_bytes(folder),
        "cuda_bytes": sum(map(_folder_bytes, cuda)),
    }


def _folder_bytes(folder: Path) -> int:
    """The size of all files below a folder; 0 if there is none."""
    paths = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    return sum(os.lstat(path).st_size for path in paths)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _fault(module: str) -> str:
    """Why a module cannot be imported, or an empty string. Incompatible packages can raise any exception."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would report that openvino was imported
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(module)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == module else f"broken: {error}"
    except Exception as error:
        return f"broken: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
    return ""


def _devices() -> Iterator[dict[str, Any]]:
    """Each device, with the attention kernels that work on it."""
    import torch

    yield _device(torch.device("cpu"), f"{platform.machine()}, {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        description = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
        yield _device(torch.device("cuda", index), description)
    if torch.backends.mps.is_available():
        yield _device(torch.device("mps"), "Apple GPU")


def _device(device: "torch.device", description: str) -> dict[str, Any]:
    from ldm.models.attention import xformers_fault

    kernels = sdpa_kernels(device)
    if device.type == "cuda" and xformers_fault(device) is None:
        kernels.append("xformers")
    return {"name": str(device), "description": description, "attention": kernels}


def sdpa_kernels(device: "torch.device") -> list[str]:
    """The kernels of torch's scaled_dot_product_attention that run on a device and give the correct result."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    # the fused CUDA kernels need half precision
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    query = torch.linspace(-1, 1, 2 * 2 * 16 * 32, dtype=torch.float64).view(2, 2, 16, 32)
    expected = (query @ query.mT / 32**0.5).softmax(-1) @ query
    works = []
    for name in ("MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        value = query.to(device=device, dtype=dtype)
        try:
            with warnings.catch_warnings(), sdpa_kernel([getattr(SDPBackend, name)]):
                warnings.simplefilter("ignore")  # torch explains at length why a kernel cannot be used
                output = scaled_dot_product_attention(value, value, value).cpu().double()
        except (RuntimeError, AttributeError):
            continue
        if torch.allclose(output, expected, atol=1e-2):
            works.append(name.removesuffix("_ATTENTION").lower())
    return works


def _free_disk(*, cache: bool) -> dict[str, dict[str, Any]]:
    """Free space for this folder and, if the packages load that know where it is, for the cache."""
    folders = {"this folder": Path.cwd()}
    if cache:
        from ldm.data.cache.cache_folder import cache_root

        folders["the cache"] = cache_root()
    return {
        name: {"folder": str(folder), "free_bytes": free_bytes(folder)} for name, folder in folders.items()
    }


def _memory_bytes() -> int:
    """The memory available to this process: the computer's, or its container's limit if smaller; 0 if unknown."""
    names = getattr(os, "sysconf_names", {})
    known = {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= names.keys()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else 0
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _embedded_model_bytes() -> int | None:
    folder = Path(__file__).parent.parent / "assets" / "emoji"
    if not (folder / "model_index.json").is_file():
        return None
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
