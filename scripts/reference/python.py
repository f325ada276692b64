"""The pages of Python names: signatures and docstrings as they stand in the source, which is read but not imported."""

import ast
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from .markdown import page

PUBLIC = (  # modules; a folder stands for the modules directly in it
    "ldm/types.py",
    "ldm/errors.py",
    "ldm/noise.py",
    "ldm/diffusion",
    "ldm/models",
    "ldm/models/loading/model.py",
    "ldm/tasks",
    "ldm/pipeline",
    "ldm/evaluation",
    "train/loop",
)
SPECIAL = ("__init__", "__call__", "__len__", "__iter__", "__getitem__")
LONGEST_CONSTANT = 8

Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_pages(root: Path) -> dict[str, str]:
    """A page for each entry of `PUBLIC` that exists, by its file name."""
    pages = {}
    for entry in PUBLIC:
        path = root / entry
        name = entry.removesuffix(".py").replace("/", ".")
        files = [path] if path.suffix else sorted(path.glob("*.py"))
        sections = [part for file in files if file.exists() for part in module_sections(file, root)]
        if sections:
            pages[f"{name}.md"] = page(f"{name}", *sections)
    return pages


def module_sections(file: Path, root: Path) -> Iterator[str]:
    """A module's heading, its docstring, and a block for each public name."""
    source = file.read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()
    blocks = [block for node, doc in with_docs(tree.body) if (block := stub(node, doc, lines))]
    if blocks:
        yield f"## {'.'.join(file.relative_to(root).with_suffix('').parts)}"
        yield ast.get_docstring(tree) or ""
        yield from (f"```python\n{block}\n```" for block in blocks)


def with_docs(body: list[ast.stmt]) -> Iterator[tuple[ast.stmt, ast.stmt | None]]:
    """Each statement, with the string that follows it and describes it, if any."""
    for node, after in zip_longest(body, body[1:]):
        yield node, after if after is not None and is_string(after) else None


def is_string(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def stub(node: ast.stmt, doc: ast.stmt | None, lines: list[str]) -> str:
    """The source of a public name without what it does; empty for anything else."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return function_stub(node, lines) if is_public(name) else ""
        case ast.ClassDef(name=name):
            return class_stub(node, lines) if is_public(name) else ""
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return constant_stub(node, doc, lines) if is_public(name) and name != "__all__" else ""
    return ""


def is_public(name: str) -> bool:
    return not name.startswith("_") or name in SPECIAL


def span(node: ast.stmt, lines: list[str]) -> list[str]:
    """The lines of a statement."""
    return lines[node.lineno - 1 : node.end_lineno]


def function_stub(node: Function, lines: list[str]) -> str:
    start = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    first = node.body[0]
    if first.lineno == node.lineno:  # all on one line
        return "\n".join(span(node, lines))
    head = lines[start - 1 : first.lineno - 1]
    while head and head[-1].strip().startswith("#"):
        head.pop()
    documented = ast.get_docstring(node) is not None
    return "\n".join([*head, *(span(first, lines) if documented else ())])


def class_stub(node: ast.ClassDef, lines: list[str]) -> str:
    """A class: its head, docstring, fields and public methods."""
    start = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    head = lines[start - 1 : node.body[0].lineno - 1]
    documented = ast.get_docstring(node) is not None
    parts = ["\n".join([*head, *(span(node.body[0], lines) if documented else ())]).rstrip()]
    members = [stub(child, doc, lines) for child, doc in with_docs(node.body)]
    return "\n\n".join([*parts, *filter(None, members)])


def constant_stub(node: ast.stmt, doc: ast.stmt | None, lines: list[str]) -> str:
    """A constant or a field; a long value is cut."""
    value = span(node, lines)
    shown = value if len(value) <= LONGEST_CONSTANT else [value[0] + " ..."]
    return "\n".join([*shown, *(span(doc, lines) if doc else ())])
