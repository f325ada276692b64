"""The rule of floors and doors (docs/architecture.md), read from every import of `ldm/` and `train/`."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = {  # a room is a module or a folder; it imports rooms of lower floors and, if it is a folder, itself
    0: "ldm.io.collector ldm.errors ldm.types ldm.version",
    1: "ldm.diffusion.ema ldm.config ldm.io.disk ldm.noise ldm.io.files ldm.io.redaction ldm.diffusion.scheduler_names",
    1.5: "ldm.diffusion.path",  # its settings are made with ldm.config
    2: "ldm.evaluation.curves ldm.io.images ldm.diffusion.objective ldm.diffusion.sampling",
    3: "ldm.data ldm.models",
    4: "ldm.pipeline",
    5: "ldm.generation ldm.export ldm.evaluation ldm",  # `ldm` is ldm/__init__.py, the public names
    6: "ldm.cli",
    7: "train ldm.__main__",
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}

HALVES = {  # one noun in several files at the top level: these stand in the room named
    "ldm.models.adapters.folder": "ldm.pipeline",
    "ldm.pipeline.record": "ldm.io.images",
    "ldm.diffusion.schedulers": "ldm.diffusion.sampling",
    "ldm.models.loading.folder": "ldm.pipeline",
    "ldm.pipeline.decoding": "ldm.pipeline",
    "ldm.models.devices": "ldm.pipeline",
    "ldm.pipeline.engine_choice": "ldm.pipeline",
    "ldm.models.adapters.lora_files": "ldm.pipeline",
    "ldm.models.adapters.fuse": "ldm.pipeline",
    "ldm.models.loading.model": "ldm.pipeline",
    "ldm.models.loading.source": "ldm.pipeline",
    "ldm.models.parts": "ldm.pipeline",
    "ldm.models.loading.pickled_file": "ldm.pipeline",
    "ldm.pipeline.settings": "ldm.pipeline",
    "ldm.models.loading.original_file": "ldm.pipeline",
    "ldm.io.locks": "ldm.io.files",
    "ldm.io.safetensors_header": "ldm.io.files",
}

INSIDE_FUNCTIONS = {"xformers", "openvino"}
DOORS = {  # a library may be imported only where the module's name begins with one of these
    "diffusers": "ldm.models ldm.diffusion.sampling ldm.pipeline ldm.export",
    "transformers": "ldm.models ldm.pipeline ldm.export",
    "peft": "ldm.models ldm.pipeline ldm.export",
    "open_clip": "ldm.models.clip ldm.evaluation train.text_encoder",
    "torchvision": "ldm.models.clip ldm.evaluation train.text_encoder",
    "datasets": "ldm.data",
    "accelerate": "train ldm.generation ldm.evaluation",
    "xformers": "ldm.models.attention ldm.models.engines.openvino_denoiser ldm.export.formats.openvino",
    "openvino": "ldm.models.attention ldm.models.engines.openvino_denoiser ldm.export.formats.openvino",
    "huggingface_hub": "ldm.pipeline ldm.export",
}


class Import(NamedTuple):
    """One imported name in full, its line, whether it was written with leading dots, or in a function."""

    target: str
    line: int
    relative: bool
    in_function: bool


def modules_of(root: Path) -> dict[str, Path]:
    """Every module under `ldm/` and `train/`, by its full name."""
    files = sorted(path for top in ("ldm", "train") for path in (root / top).rglob("*.py"))
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in files]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, files, strict=True)}


def targets_of(node: ast.AST, package: list[str], modules: dict[str, Path]) -> list[str]:
    """The full names that one node imports, itself only; a literal `import_module("...")` counts."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join(above + ([node.module] if node.module else []))
            return [f"{base}.{a.name}" if f"{base}.{a.name}" in modules else base for a in node.names]
        case ast.Call(
            func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(str(name)), *_]
        ):
            return [name] if called in ("import_module", "__import__") else []
    return []


def imports_of(name: str, path: Path, modules: dict[str, Path]) -> Iterator[Import]:
    """Every import of a module, those inside functions and under TYPE_CHECKING too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = {id(node) for function in functions for node in ast.walk(function)}
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        relative = isinstance(node, ast.ImportFrom) and node.level > 0
        for target in targets_of(node, package, modules):
            yield Import(target, node.lineno, relative, id(node) in inner)  # type: ignore[attr-defined]


def room_of(module: str) -> str:
    """The room that a module stands in: `train`, `ldm`, `ldm.io.images`, `ldm.data`."""
    parts = module.split(".")
    room = parts[0] if parts[0] == "train" else ".".join(parts[:2])
    return HALVES.get(room, room)


def door_fault(module: str, library: str, in_function: bool) -> str | None:
    """What is wrong with a library's door, or None."""
    rooms = tuple(DOORS[library].split())
    if not (module.startswith(rooms) or room_of(module).startswith(rooms)):
        return f"{library} may be imported only in {', '.join(rooms)}"
    if library in INSIDE_FUNCTIONS and not in_function:
        return f"{library} may be imported only inside a function"
    return None


def fault_of(module: str, found: Import) -> str | None:
    """What is wrong with one import, or None."""
    library = found.target.split(".")[0]
    if library in DOORS:
        return door_fault(module, library, found.in_function)
    if library in ("train", "ldm_train") and not found.relative:
        return (
            "train is imported from ldm"
            if room_of(module) != "train"
            else "inside train, imports are relative"
        )
    here, there = room_of(module), room_of(found.target)
    if library not in ("ldm", "train") or here == there or here not in FLOOR_OF:
        return None
    if there not in FLOOR_OF:
        return "which has no floor"
    low, high = FLOOR_OF[there], FLOOR_OF[here]
    if low < high:
        return None
    return f"{'upward' if low > high else 'sideways'}, from floor {high} to floor {low}"


def faults(root: Path) -> list[str]:
    """Every breach of the rule in a tree, as lines `file:line: module imports target: why`."""
    modules = modules_of(root)
    advice = "add it to FLOORS, or to HALVES if it is a part of another file, in tests/test_floors.py"
    found = [f"{name}: has no floor: {advice}" for name in modules if room_of(name) not in FLOOR_OF]
    lawful: dict[str, set[str]] = {module: set() for module in modules}
    for module, path in modules.items():
        for each in imports_of(module, path, modules):
            if fault := fault_of(module, each):
                found.append(f"{path.relative_to(root)}:{each.line}: {module} imports {each.target}: {fault}")
            elif each.target in modules:
                lawful[module].add(each.target)
    try:
        TopologicalSorter(lawful).prepare()
    except CycleError as error:
        found.append("import cycle: " + " <- ".join(error.args[1]))
    return found


def test_the_house_keeps_its_floors_and_doors() -> None:
    assert len(modules_of(ROOT)) > 20
    found = faults(ROOT)
    assert not found, "\n" + "\n".join(found)


LAWFUL = {
    "ldm/__init__.py": "def __getattr__(name):\n    from ldm import pipeline",
    "ldm/errors.py": "import re",
    "ldm/io/files.py": "from ldm.errors import UserError",
    "ldm/io/images.py": "from ldm import files\nimport numpy",
    "ldm/pipeline/record.py": "from ldm.io.images import x",
    "ldm/pipeline/pipeline.py": "from diffusers import x\nfrom .model_folder import y\nimport ldm.models.text_clip",
    "ldm/models/loading/folder.py": "import huggingface_hub",
    "ldm/data/__init__.py": "",
    "ldm/data/sources/folder.py": "import datasets\nfrom .captions import x",
    "ldm/data/captions.py": "import ldm.io.images",
    "ldm/models/__init__.py": "",
    "ldm/models/text_clip.py": "import open_clip.model",
    "ldm/models/attention.py": "def f():\n    import xformers.ops",
    "train/__init__.py": "",
    "train/loop/steps.py": "import accelerate\nfrom ldm.data.sources.folder import x\nfrom . import log",
    "train/run/log.py": "from ldm import pipeline",
}

FILES, FOLDER, LOOP, APP = (
    "ldm/io/files.py",
    "ldm/data/sources/folder.py",
    "train/loop/steps.py",
    "ldm/cli/app.py",
)
PLANTED = [
    (FILES, "from ldm.io.images import x", "ldm/io/files.py:1: ldm.io.files imports ldm.io.images: upward"),
    (FILES, "from ldm import images", "imports ldm.io.images: upward, from floor 1 to floor 2"),
    (FILES, "import ldm", "ldm.io.files imports ldm: upward"),
    (
        FILES,
        "def f():\n    from .data import folder",
        ":2: ldm.io.files imports ldm.data.sources.folder: upward",
    ),
    (FILES, "if TYPE_CHECKING:\n    import ldm.pipeline", ":2: ldm.io.files imports ldm.pipeline: upward"),
    (FILES, "importlib.import_module('ldm.io.images')", "ldm.io.files imports ldm.io.images: upward"),
    ("ldm/noise.py", "import ldm.io.files", "ldm.noise imports ldm.io.files: sideways"),
    (
        "ldm/diffusion/objective.py",
        "from ldm.pipeline.record import x",
        "imports ldm.pipeline.record: sideways",
    ),
    (
        FOLDER,
        "from ..models import text_clip",
        "ldm.data.sources.folder imports ldm.models.text_clip: sideways",
    ),
    (FOLDER, "import diffusers", "diffusers may be imported only in ldm.models, ldm.diffusion.sampling"),
    ("ldm/models/unet.py", "from open_clip import x", "open_clip may be imported only in ldm.models.clip"),
    ("ldm/io/images.py", "def f():\n    import torchvision.io", "torchvision may be imported only in"),
    (LOOP, "from transformers import x", "transformers may be imported only in ldm.models"),
    (LOOP, "async def f():\n    import huggingface_hub", ":2: train.loop imports huggingface_hub"),
    ("ldm/models/attention.py", "import xformers", "xformers may be imported only inside a function"),
    ("ldm/models/text_clip.py", "def f():\n    import openvino", "openvino may be imported only in"),
    (APP, "def f():\n    from train import loop", "ldm.cli.app imports train.loop: train is imported"),
    (APP, "import ldm_train.loop", "ldm.cli.app imports ldm_train.loop: train is imported from ldm"),
    (LOOP, "from train.log import x", "train.loop imports train.log: inside train, imports are relative"),
    (LOOP, "import ldm_train.log", "inside train, imports are relative"),
    ("ldm/data/captions.py", "from . import folder", "import cycle: ldm.data."),
    ("train/run/log.py", "def f():\n    from .loop import x", "import cycle: train."),
    ("ldm/utils.py", "", "ldm.utils: has no floor: add it to FLOORS"),
    (
        "ldm/pipeline/pipeline.py",
        "from ldm.gone import x",
        "ldm.pipeline imports ldm.gone: which has no floor",
    ),
]


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
    return root


def test_a_lawful_tree_has_no_faults(tmp_path: Path) -> None:
    assert faults(plant(tmp_path, LAWFUL)) == []


@pytest.mark.parametrize(("name", "source", "message"), PLANTED, ids=[message for _, _, message in PLANTED])
def test_a_planted_breach_is_reported(tmp_path: Path, name: str, source: str, message: str) -> None:
    found = faults(plant(tmp_path, {**LAWFUL, name: source}))
    assert len(found) == 1
    assert message in found[0]
