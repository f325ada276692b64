"""The rules of the house: the file map, sizes, names, no pickles, and configurations that load."""

import ast
import re
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath
from sys import stdlib_module_names

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ldm.config import load_settings, read_yaml

ROOT = Path(__file__).parent.parent
# those of Accelerate's launcher configure no training
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "accelerate")
MAX_FILE_MEGABYTES = 15
MAX_LINES, MAX_SCRIPT_LINES, MAX_FUNCTION_LINES = 300, 60, 60
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def files_of(*tops: str, root: Path = ROOT) -> list[str]:
    """Every file under some folders, as paths from the root; caches are none."""
    paths = (path for top in tops for path in (root / top).rglob("*") if path.is_file())
    return sorted(p.relative_to(root).as_posix() for p in paths if "__pycache__" not in p.parts)


def code_of(*tops: str, root: Path = ROOT) -> list[str]:
    return [name for name in files_of(*tops, root=root) if name.endswith(".py")]


# The file map of the README: lines `ldm/errors.py   what it is`; a line `configs/emoji/` stands for a folder.


def map_entries(readme: str) -> list[str]:
    """The paths that the README's section "File map" names."""
    section = readme.partition("\n## File map\n")[2].partition("\n## ")[0]
    return re.findall(r"^((?:ldm|train|configs|scripts)/\S*)", section, flags=re.MULTILINE)


def map_faults(readme: str, root: Path) -> list[str]:
    """Files that the map leaves out, names that are no file, names twice. Empty files need no line."""
    entries = map_entries(readme)
    folders = tuple(entry for entry in entries if entry.endswith("/"))
    files = files_of("ldm", "train", "configs", "scripts", root=root)
    missing = [name for name in files if (root / name).stat().st_size and not name.startswith(folders)]
    return (
        [f"{name} is not in the README's file map" for name in missing if name not in entries]
        + [
            f"{entry} in the README's file map is not there"
            for entry in entries
            if not (root / entry).exists()
        ]
        + [f"{entry} is twice in the README's file map" for entry in set(entries) if entries.count(entry) > 1]
    )


def test_the_file_map_names_every_file_and_no_other() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(map_entries(readme)) > 40
    faults = map_faults(readme, ROOT)
    assert not faults, "\n" + "\n".join(faults)


def test_a_wrong_file_map_is_noticed(tmp_path: Path) -> None:
    for name in (
        "ldm/new.py",
        "ldm/old.py",
        "ldm/empty.py",
        "configs/emoji/a.yaml",
        "train/a.py",
        "scripts/a.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if "empty" in name else "x")
    lines = [
        "ldm/old.py  old",
        "ldm/gone.py  gone",
        "configs/emoji/  recipes",
        "train/a.py  a",
        "train/a.py  a",
    ]
    readme = "\n".join(
        ["# x", "scripts/a.py outside", "## File map", *lines, "## Next", "ldm/new.py outside"]
    )
    assert map_faults(readme, tmp_path) == [
        "ldm/new.py is not in the README's file map",
        "scripts/a.py is not in the README's file map",
        "ldm/gone.py in the README's file map is not there",
        "train/a.py is twice in the README's file map",
    ]


# Sizes and names


def line_faults(name: str, source: str) -> list[str]:
    """What is too long in a file: the whole, or a function's body without its docstring."""
    limit = MAX_SCRIPT_LINES if re.fullmatch(r"scripts/\w+\.\w+", name) else MAX_LINES
    count = len(source.splitlines())
    found = [f"{name} has {count} lines: split it by noun; at most {limit}"] if count > limit else []
    for node in ast.walk(ast.parse(source)) if name.endswith(".py") else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            has_docstring = ast.get_docstring(node) is not None and len(node.body) > 1
            length = (node.end_lineno or 0) - node.body[has_docstring].lineno + 1
            if length > MAX_FUNCTION_LINES:
                found.append(f"{name}: {node.name} has {length} lines; at most {MAX_FUNCTION_LINES}")
    return found


def test_files_and_functions_are_short() -> None:
    shell = [name for name in files_of("scripts") if name.endswith(".sh")]
    names = code_of("ldm", "train", "scripts", "tests") + shell
    found = [fault for name in names for fault in line_faults(name, (ROOT / name).read_text("utf-8"))]
    assert not found, "\n" + "\n".join(found)


def test_a_long_file_is_noticed() -> None:
    assert not line_faults("ldm/a.py", "x\n" * 300)
    assert line_faults("ldm/a.py", "x\n" * 301) == ["ldm/a.py has 301 lines: split it by noun; at most 300"]
    assert len(line_faults("scripts/a.py", "x\n" * 61)) == len(line_faults("scripts/a.sh", "x\n" * 61)) == 1
    assert not line_faults("scripts/benchmark/a.py", "x\n" * 61)
    assert not line_faults("ldm/a.py", 'def f():\n """A.\n\n B."""\n' + " x\n" * 60)
    assert line_faults("ldm/a.py", "def f():\n" + " x\n" * 61) == ["ldm/a.py: f has 61 lines; at most 60"]


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
    assert not {name: faults for name, faults in found.items() if faults}


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


# The tests stay on this machine


def test_the_network_is_out_of_reach() -> None:
    with socket.socket() as outside, pytest.raises(pytest.fail.Exception, match="reached for the network"):
        outside.connect(("192.0.2.1", 80))
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


# Every library that is imported is asked for in pyproject.toml


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
