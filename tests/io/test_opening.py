"""Files that users give are opened in one place: the rule, and what that place promises."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm.io.json_files import MAX_BRACKETS, parse_json
from ldm.io.opening import open_file, read_bytes, read_text

ROOT = Path(__file__).parents[2]

READING = {
    "open", "read_text", "read_bytes", "json.load", "json.loads", "yaml.safe_load", "yaml.load", "torch.load",
    "safe_open", "load_file", "Image.open", "tarfile.open", "gzip.open", "zipfile.ZipFile", "gzip.decompress",
    "pyarrow.parquet.read_table", "pyarrow.parquet.ParquetFile", "pyarrow.memory_map", "np.load", "np.memmap",
    "load_from_disk", "load_dataset", "from_pretrained", "from_single_file",
}  # fmt: skip
"""Calls that read a file or parse what was read; `open` also as a method with a mode for reading."""

OWN = "a file that another process of the same call wrote"
SYSTEM = "a file of the system"
ALLOWED = {
    # checked by `check_file`, `check_files` or `read_header` in the line before
    ("ldm.models.loading.components", "from_pretrained"): "check_files",
    ("ldm.provenance.safety", "from_pretrained"): "check_files and read_header",
    (
        "ldm.data.sources.parquet",
        "pyarrow.parquet.ParquetFile",
    ): "check_file, and every page by parquet_pages",
    (
        "ldm.data.sources.metadata",
        "pyarrow.parquet.ParquetFile",
    ): "check_file, and every page by parquet_pages",
    ("ldm.data.sources.hf_datasets", "load_from_disk"): "check_saved",
    ("ldm.data.sources.hf_datasets", "load_dataset"): "a name, whose files the library downloads",
    ("ldm.data.sources.webdataset", "tarfile.open"): "open_file",
    ("ldm.demos.emoji_source", "tarfile.open"): "open_file",
    ("ldm.data.cache.shards", "open"): "refuses what is no regular file itself, and keeps the handle",
    ("ldm.config", "yaml.load"): "read_text, and the depth before and the amount after",
    ("ldm.models.loading.pickled_file", "torch.load"): "in a process of its own",
    ("ldm.export.hub.leaks", "read_bytes"): "a file of a folder whose list was checked",
    ("ldm.export.hub.leaks", "Image.open"): "a file of a folder whose list was checked",
    ("ldm.export.hub.leaks", "read_text"): "a file of a folder whose list was checked",
    ("ldm.export.hub.leaks", "open"): "a file of a folder whose list was checked",
    ("ldm.export.hub.upload", "open"): "a file of a folder whose list was checked",
    ("ldm.export.hub.outgoing", "read_text"): "is_file",
    ("ldm.web.decode_upload", "Image.open"): "an upload of bounded size, in a process with limits",
    ("ldm.web.decode_upload", "json.loads"): "between the server and its own process",
    # not from users
    ("ldm.web.own_api", "read_bytes"): "a file of this package",
    ("ldm.web.own_api", "read_text"): "a file of this package",
    ("ldm.web.service", "Image.open"): "an image that the server has made",
    ("ldm.export.formats.diffusers_folder", "from_pretrained"): "a line of Python for the card",
    ("ldm.export.formats.lora_formats", "from_pretrained"): "a line of Python for the card",
    ("ldm.data.degradations", "Image.open"): "a JPEG that was made in memory in the line before",
    ("ldm.demos.emoji", "Image.open"): "bytes of a package, limited by _read_member",
    ("ldm.demos.emoji_objects", "Image.open"): "images that the script has just written",
    ("ldm.models.identity", "json.loads"): "the text of a loaded tokenizer",
    ("train.plan.other_load", "read_text"): SYSTEM,
    ("ldm.models.loading.model", "json.loads"): "the text of a loaded tokenizer",
    ("ldm.models.adapters.embedding", "from_pretrained"): "torch's name for an embedding from a tensor",
    ("ldm.models.clip_tokenizer", "read_bytes"): "a file of this package",
    ("ldm.models.clip_tokenizer", "gzip.decompress"): "a file of this package",
    ("ldm.generation.work", "read_text"): OWN,
    ("ldm.generation.job", "read_bytes"): OWN,
    ("ldm.cli.generate_processes", "open"): OWN,
    ("ldm.cli.schema", "json.loads"): OWN,
    ("ldm.cli.forget", "json.loads"): OWN,
    ("ldm.cli.ledger", "json.loads"): OWN,
    ("ldm.evaluation.evaluation_job", "json.loads"): OWN,
    ("ldm.evaluation.evaluation_job", "read_bytes"): OWN,
    ("ldm.evaluation.memorisation", "Image.open"): "a JPEG that was made in memory in the line before",
    ("ldm.cli.generate_processes", "json.loads"): OWN,
    ("ldm.export.verify.readers", "from_pretrained"): "the reader of an export, in a process of its own",
    ("ldm.export.verify.readers", "from_single_file"): "the reader of an export, in a process of its own",
    ("ldm.export.verify.readers", "load_file"): OWN,
    ("ldm.export.verify.readers", "json.loads"): OWN,
    ("ldm.export.verify.readers", "read_text"): OWN,
    (
        "ldm.export.verify.openvino_reader",
        "from_pretrained",
    ): "the reader of an export, in a process of its own",
    ("ldm.export.verify.openvino_reader", "json.loads"): "the reader of an export, in a process of its own",
    ("ldm.export.verify.openvino_reader", "read_text"): "the reader of an export, in a process of its own",
    ("ldm.cli.doctor", "read_text"): SYSTEM,
    ("train.plan.step_cost", "read_text"): SYSTEM,
    ("train.settings.schema", "open"): SYSTEM,
}
"""Modules outside `ldm/io/` that call one of these all the same, and why that is safe."""


def reading_calls(source: str) -> Iterator[str]:
    """The calls of `READING` in a module."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        if isinstance(node.func, ast.Name) and name in ("read_text", "read_bytes"):
            continue  # the functions of ldm.io.opening
        if name in READING - {"open"} or (last in READING - {"open"} and "." in name):
            yield name if name in READING else last
        elif last == "open" and _reads(node, name):
            yield "open"


def _reads(node: ast.Call, name: str) -> bool:
    """Whether a call of something named `open` opens a file for reading."""
    if name in ("open", "os.open", "io.open"):
        return True
    modes = [
        each.value for each in node.args[:1] if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]
    return any(mode in ("r", "rb", "r+", "r+b", "rt") for mode in modes)


def test_no_module_outside_ldm_io_opens_users_files() -> None:
    found: dict[tuple[str, str], int] = {}
    for path in [*(ROOT / "ldm").rglob("*.py"), *(ROOT / "train").rglob("*.py")]:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not module.startswith("ldm.io."):
            for call in reading_calls(path.read_text(encoding="utf-8")):
                found[module, call] = found.get((module, call), 0) + 1
    unknown = sorted(found.keys() - ALLOWED.keys())
    assert not unknown, f"use ldm.io.opening or ldm.io.json_files, or say why not: {unknown}"
    assert not ALLOWED.keys() - found.keys(), "no longer there"


@pytest.mark.parametrize(
    "source",
    [
        "open(p)",
        "p.open('rb')",
        "p.read_text()",
        "json.loads(x)",
        "Image.open(p)",
        "pyarrow.parquet.read_table(p)",
    ],
)
def test_a_planted_reader_is_noticed(source: str) -> None:
    assert list(reading_calls(source))


def test_a_file_is_read_whole_and_only_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one\r\ntwo\rthree")
    assert read_bytes(path, 14) == b"one\r\ntwo\rthree"
    assert read_text(path) == "one\ntwo\nthree"
    with pytest.raises(OSError, match="more than 13 bytes"):
        read_bytes(path, 13)
    with pytest.raises(OSError, match="more than 5 bytes"):  # its size is said to be 0
        read_bytes("/proc/self/status", 5)


def test_nothing_is_left_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(OSError, match="it is a pipe, not a regular file"):
            open_file(tmp_path / "pipe")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "good", ['{"a": [1, 1e30, -Infinity, 1000000000000000019884624838656]}', "[[[]]]", "1e37"]
)
def test_values_that_real_files_have_are_read(good: str) -> None:
    parse_json(good)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("[" * MAX_BRACKETS + "[", "brackets"),
        ("[" * 101 + "]" * 101, "nested more than 100 deep"),
        ("9" * 41, "41 digits"),
        ("1e999", "too large"),
        (b"\xff", "utf-8"),
        ("{", "Expecting"),
    ],
)
def test_values_that_no_real_file_has_are_refused(bad: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(bad)
