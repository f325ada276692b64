"""The rules of the house: sizes, names, imports of tests, no pickles, and configurations that load."""

import ast
import re
import socket
import subprocess
import tomllib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath
from sys import stdlib_module_names

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ldm.config import load_settings, read_yaml

ROOT = Path(__file__).parent.parent
# configs/accelerate/ configures Accelerate's launcher, not a training run
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "accelerate")
MAX_FILE_MEGABYTES = 15
MAX_SCRIPT_LINES, MAX_FUNCTION_LINES = 60, 60
LONG_FILE_LINES = 500  # a warning, not a failure: cohesion decides how long a file is
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
SAME_NAMES = {  # file names that two modules have today; each should become one name, and none may join them
    "batches.py",
    "denoiser.py",
    "devices.py",
    "folder.py",
}
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def files_of(*tops: str, root: Path = ROOT) -> list[str]:
    """Every file under some folders, as paths from the root; caches are none."""
    paths = (path for top in tops for path in (root / top).rglob("*") if path.is_file())
    return sorted(p.relative_to(root).as_posix() for p in paths if "__pycache__" not in p.parts)


def code_of(*tops: str, root: Path = ROOT) -> list[str]:
    return [name for name in files_of(*tops, root=root) if name.endswith(".py")]


# Sizes and names


def function_faults(name: str, source: str) -> list[str]:
    """Functions whose body is too long, docstring not counted."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            has_docstring = ast.get_docstring(node) is not None and len(node.body) > 1
            length = (node.end_lineno or 0) - node.body[has_docstring].lineno + 1
            if length > MAX_FUNCTION_LINES:
                found.append(f"{name}: {node.name} has {length} lines; at most {MAX_FUNCTION_LINES}")
    return found


def script_faults(name: str, source: str) -> list[str]:
    """A script directly in scripts/ that is too long: its logic belongs in a module."""
    count = len(source.splitlines())
    if re.fullmatch(r"scripts/\w+\.\w+", name) and count > MAX_SCRIPT_LINES:
        return [
            f"{name} has {count} lines; a script has at most {MAX_SCRIPT_LINES}: move its logic to a module"
        ]
    return []


def test_functions_and_scripts_are_short() -> None:
    sources = {
        name: (ROOT / name).read_text("utf-8")
        for name in code_of("ldm", "train", "scripts", "tests")
        + [name for name in files_of("scripts") if name.endswith(".sh")]
    }
    found = [fault for name, source in sources.items() for fault in script_faults(name, source)]
    for name, source in sources.items():
        found += function_faults(name, source) if name.endswith(".py") else []
    assert len(sources) > 100
    assert not found, "\n" + "\n".join(found)


@pytest.mark.filterwarnings("default")
def test_long_files_are_listed() -> None:
    names = code_of("ldm", "train", "scripts", "tests")
    counts = {name: len((ROOT / name).read_text("utf-8").splitlines()) for name in names}
    if long := [f"{name} has {count} lines" for name, count in counts.items() if count > LONG_FILE_LINES]:
        warnings.warn("is each of these one idea? " + ", ".join(long), stacklevel=1)


def test_a_long_function_and_a_long_script_are_noticed() -> None:
    assert not function_faults("ldm/a.py", 'def f():\n """A.\n\n B."""\n' + " x\n" * 60)
    assert function_faults("ldm/a.py", "def f():\n" + " x\n" * 61) == ["ldm/a.py: f has 61 lines; at most 60"]
    assert not script_faults("scripts/a.py", "x\n" * 60)
    assert (
        len(script_faults("scripts/a.py", "x\n" * 61)) == len(script_faults("scripts/a.sh", "x\n" * 61)) == 1
    )
    assert not script_faults("scripts/benchmark/a.py", "x\n" * 61)


def test_no_file_is_large() -> None:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        found = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
            "\0"
        )
    except (OSError, subprocess.CalledProcessError):
        found = files_of("ldm", "train", "configs", "scripts", "tests", "docs")  # no git here
    sizes = {name: (ROOT / name).stat().st_size / 1e6 for name in found if (ROOT / name).is_file()}
    assert len(sizes) > 40
    assert not [f"{n}: {size:.1f} MB" for n, size in sizes.items() if size > MAX_FILE_MEGABYTES]


def test_names_say_what_is_inside() -> None:
    names = [PurePosixPath(name) for name in files_of("ldm", "train", "scripts", "tests", "configs")]
    words = {name: {part.removeprefix("test_") for part in (*name.parent.parts, name.stem)} for name in names}
    assert not [str(name) for name, parts in words.items() if parts & FORBIDDEN_NAMES]


def same_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Modules by the file name that they share with another one.

    `ldm/cli/` is left out: each of its files is named after its command, as is the module that does the work.
    """
    found = defaultdict(list)
    for name in names:
        if not name.startswith("ldm/cli/") and not name.endswith("__init__.py"):
            found[PurePosixPath(name).name].append(name)
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def test_a_file_name_belongs_to_one_module() -> None:
    shared = same_names(code_of("ldm", "train"))
    new = {name: paths for name, paths in shared.items() if name not in SAME_NAMES}
    assert not new, "choose other names"
    assert not SAME_NAMES - set(shared), "no longer shared: remove them from SAME_NAMES"


def test_a_shared_file_name_is_noticed() -> None:
    names = ["ldm/a/b.py", "train/b.py", "ldm/__init__.py", "train/__init__.py", "ldm/cli/c.py", "ldm/c.py"]
    assert same_names(names) == {"b.py": ["ldm/a/b.py", "train/b.py"]}


# Tests share pieces through tests/support/


def imported_tests(source: str) -> list[str]:
    """The test modules and conftests that a module imports."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module or ''}.{alias.name}" for alias in node.names]
    return [
        name
        for name in found
        if re.search(r"(^|\.)(test_\w+|conftest)(\.|$)", name.partition(".support.")[0])
    ]


def test_no_test_imports_another_test() -> None:
    found = {name: imported_tests((ROOT / name).read_text("utf-8")) for name in code_of("tests")}
    assert len(found) > 100
    assert not {name: tests for name, tests in found.items() if tests}, (
        "move what they share to tests/support/"
    )


def test_an_import_of_a_test_is_noticed() -> None:
    source = """
import tests.data.test_order
from tests.data.test_order import fill
from tests.data import test_order
from ..conftest import no_network
from tests.support.tiny_data import test_images
from tests import support
"""
    assert len(imported_tests(source)) == 4


# Nothing is unpickled


def pickle_faults(source: str) -> Iterator[str]:
    """Every way in which a module could run a pickle, as `line: what`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), level=0):
                modules = [module]
            case ast.Call(func=ast.Attribute(attr=called), keywords=keywords):
                given = {k.arg: k.value.value for k in keywords if isinstance(k.value, ast.Constant)}
                if given.get("allow_pickle") or called in ("read_pickle", "to_pickle"):
                    yield f"{node.lineno}: {called} with a pickle"
                if ast.unparse(node.func) == "torch.load" and given.get("weights_only") is not True:
                    yield f"{node.lineno}: torch.load without weights_only=True"
                continue
            case _:
                continue
        yield from (f"{node.lineno}: {name}" for name in modules if name.split(".")[0] in PICKLES)


def test_nothing_is_unpickled() -> None:
    found = {name: list(pickle_faults((ROOT / name).read_text("utf-8"))) for name in code_of("ldm", "train")}
    assert len(found) > 20
    # a process reads what its own parent or child has just written
    assert {name for name, faults in found.items() if faults} <= {"ldm/data/decode_apart.py"}


def test_a_pickle_is_noticed() -> None:
    source = """
import pickle, json
from joblib import load
def f():
    import dill.source
    torch.load(path)
    torch.load(path, weights_only=False)
    torch.load(path, weights_only=True)
    np.load(path, allow_pickle=True)
    np.load(path)
"""
    found = {int(fault.split(":")[0]) for fault in pickle_faults(source)}
    assert found == {2, 3, 5, 6, 7, 9}


# Tests use no network


def test_the_network_is_out_of_reach() -> None:
    with socket.socket() as outside, pytest.raises(pytest.fail.Exception, match="reached for the network"):
        outside.connect(("192.0.2.1", 80))
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


# Every imported library is a requirement in pyproject.toml


def test_every_library_is_required() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"].values()]
    lines = [line for entry in asked for line in ([entry] if isinstance(entry, str) else entry)]
    required = {canonicalize_name(Requirement(line).name) for line in lines}
    distributions = packages_distributions()
    missing = {}
    for name in code_of("ldm", "train"):
        for library in libraries_of((ROOT / name).read_text("utf-8")):
            names = {canonicalize_name(found) for found in distributions.get(library, [library])}
            if not names & required:
                missing[f"{name}: {library}"] = names
    assert not missing


def libraries_of(source: str) -> set[str]:
    """The third-party packages that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).split(".")[0])
    return found - stdlib_module_names - {"ldm", "train"}


# Configurations


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_configuration_is_valid(path: Path) -> None:
    program = read_yaml(path)["program"]
    kind = getattr(import_module(f"train.{program}"), f"{program.title().replace('_', '')}Settings")
    assert load_settings(kind, path).program == program


def header_faults(text: str, name: str) -> list[str]:
    """What the comment at the head of a configuration leaves out."""
    header = re.split(r"^(?!#)", text, maxsplit=1, flags=re.MULTILINE)[0]
    wanted = {
        f"# command: ldm train {name}": rf"# command: ldm train {re.escape(name)}\b",
        "# time: ...": r"# time: \S",
        "# result: ...": r"# result: \S",
    }
    return [
        f"no line `{line}`" for line, pattern in wanted.items() if not re.search(f"(?mi)^{pattern}", header)
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_configuration_begins_with_its_record(path: Path) -> None:
    faults = header_faults(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    assert not faults


def test_a_missing_record_is_noticed() -> None:
    header = "# An autoencoder.\n# Command: ldm train configs/a.yaml\n# time: 3 min\n# result: 25 dB\n"
    assert header_faults(header + "program: a\n", "configs/a.yaml") == []
    assert len(header_faults("program: a\n" + header, "configs/a.yaml")) == 3
    assert header_faults(header, "configs/b.yaml") == ["no line `# command: ldm train configs/b.yaml`"]
    assert header_faults(header.replace("25 dB", ""), "configs/a.yaml") == ["no line `# result: ...`"]
