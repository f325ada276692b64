"""Every reader of a user's file, given every kind of file that is none and JSON of every wrong shape, in one process.

A reader either refuses with one line or says that there is nothing; it does not wait, take much memory or raise
anything else. A reader that is added to the table meets all the inputs.
"""

import json
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ldm.cli.autoconfig import _TextConfig, _UnetConfig
from ldm.config import load_settings, read_yaml
from ldm.data.cache.shards import FORMAT, ShardStore
from ldm.data.captions import CaptionSettings
from ldm.data.image_index import ImageIndex
from ldm.data.sample import FileImage
from ldm.data.sources.hf_datasets import check_saved
from ldm.data.sources.metadata import decode_utf8, read_rows
from ldm.data.sources.parquet import read_parquet
from ldm.data.sources.webdataset import read_tar
from ldm.errors import UserError
from ldm.evaluation.curves import read_metrics
from ldm.export.card.source_card import read_source_card
from ldm.generation.finished import image_fault
from ldm.generation.prompts import read_prompts
from ldm.generation.reproduce import read_original
from ldm.io.files import manifest_fault, open_tensors, read_tensors
from ldm.io.images import open_alpha, open_image
from ldm.io.json_files import read_json, read_object
from ldm.io.locks import _holder
from ldm.io.png import read_chunk
from ldm.io.safetensors_header import read_header
from ldm.models.adapters.folder import read_adapter
from ldm.models.adapters.lora_files import _header_configs, read_lora
from ldm.models.families.registry import family_of_folder
from ldm.models.loading.component_files import check_files
from ldm.models.loading.folder import check_folder, read_defaults
from ldm.provenance.image_report import provenance_of
from train.run.best import read_best
from train.run.checkpoints import CheckpointNumbers
from train.run.resume import _trained_on

SECONDS = 10
MAX_GROWTH_BYTES = 400 * 2**20


def opened(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """A reader that is a context manager."""

    def enter(path: Path) -> None:
        with read(path):
            pass

    return enter


def all_of(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda path: list(read(path))


def shards_of(path: Path) -> None:
    ShardStore(path.parents[2], "moments", "m", on_damage=lambda line: None).refresh()


COLUMNS = {"image_column": "image", "caption_column": "text"}

# the name of the file that is hostile -> its reader
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "read_json": ("a.json", lambda path: read_json(path, dict[str, int])),
    "read_object": ("a.json", read_object),
    "manifest": ("manifest.json", lambda path: manifest_fault(path.parent)),
    "state of a checkpoint": ("state.json", lambda path: read_json(path, CheckpointNumbers)),
    "best weights": ("best/manifest.json", lambda path: read_best(path.parents[1])),
    "data of a checkpoint": ("data.json", lambda path: _trained_on(path.parent)),
    "lock": ("run.lock", _holder),
    "yaml": ("a.yaml", read_yaml),
    "settings": ("a.yaml", lambda path: load_settings(CaptionSettings, path)),
    "header": ("a.safetensors", read_header),
    "tensors": ("a.safetensors", read_tensors),
    "open tensors": ("a.safetensors", opened(open_tensors)),
    "lora": ("a.safetensors", read_lora),
    "lora's header": ("a.safetensors", _header_configs),
    "adapter": ("adapter.json", lambda path: read_adapter(path.parent)),
    "model index": ("model_index.json", lambda path: check_folder(path.parent)),
    "family": ("unet/config.json", lambda path: family_of_folder(path.parents[1])),
    "config": ("unet/config.json", lambda path: check_files(path.parent)),
    "unet of a base": ("config.json", lambda path: read_json(path, _UnetConfig)),
    "text encoder of a base": ("config.json", lambda path: read_json(path, _TextConfig)),
    "defaults": ("ldm.json", lambda path: read_defaults(path.parent, 64, 64)),
    "PNG": ("a.png", lambda path: read_chunk(path, "ldm")),
    "record": ("a.png", read_original),
    "record of a JPEG": ("a.jpg", read_original),
    "provenance": ("a.png", provenance_of),
    "finished image": ("a.png", lambda path: image_fault(path, {"width": 8, "height": 8})),
    "image": ("a.png", open_image),
    "alpha": ("a.png", open_alpha),
    "bytes of an image": ("a.png", lambda path: FileImage(path).read()),
    "text": ("a.txt", decode_utf8),
    "jsonl": ("metadata.jsonl", all_of(read_rows)),
    "csv": ("metadata.csv", all_of(read_rows)),
    "parquet metadata": ("metadata.parquet", all_of(read_rows)),
    "parquet": ("a.parquet", all_of(lambda path: read_parquet("a", path, **COLUMNS))),
    "tar": ("a.tar", all_of(lambda path: read_tar("a", path, **COLUMNS))),
    "saved dataset": ("state.json", lambda path: check_saved(path.parent)),
    "saved splits": ("dataset_dict.json", lambda path: check_saved(path.parent)),
    "metrics": ("metrics.jsonl", read_metrics),
    "prompts": ("prompts.jsonl", read_prompts),
    "prompts as text": ("prompts.txt", read_prompts),
    "card": ("README.md", lambda path: read_source_card(path.parent)),
    "image index": ("facts/facts-1.jsonl", lambda path: ImageIndex(path.parents[1])),
    "shard": (f"moments/m/moments-{'0' * 32}.safetensors", shards_of),
}

TEXTS = {
    "empty": b"",
    "list": b"[1, 2]",
    "null": b"null",
    "number": b"7",
    "string": b'"text"',
    "wrong values": json.dumps(
        {"step": [], "kind": 3, "defaults": [], "_data_files": 7, "splits": {"a": 1}}
    ).encode(),
    "deep": b"[" * 5000 + b"]" * 5000,
    "deep object": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "400 digits": b'{"a": ' + b"9" * 400 + b"}",
    "5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "infinite": b'{"a": 1e999}',
    "not UTF-8": b'{"a": "\xff"}',
    "lone surrogate": b'{"prompt": "\\ud800", "text": "\\ud800"}',
    "brackets": b"[" + b"[]," * 20_000 + b"[]]",
    "no date": b"a: 2026-13-45",
    "aliases": b"a: &a [x, x]\n"
    + b"".join(b"%c: &%c [*%c, *%c]\n" % (c + 1, c + 1, c, c) for c in range(97, 120)),
    "zeros": bytes(4096),
}


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


NO_FILES: dict[str, Callable[[Path], None]] = {
    "pipe": make_fifo,
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path),
    "16 GB": lambda path: (path.touch(), os.truncate(path, 2**34))[0],
    "/proc": lambda path: path.symlink_to("/proc/self/mem"),
    **{name: lambda path, data=data: path.write_bytes(data) and None for name, data in TEXTS.items()},
}


@contextmanager
def time_limit() -> Iterator[None]:
    """A reader that waits fails the test after `SECONDS`."""

    def stop(number: int, frame: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_every_hostile_input(tmp_path: Path, reader: str) -> None:
    name, read = READERS[reader]
    before = peak_bytes()
    for number, (kind, make) in enumerate(NO_FILES.items()):
        path = tmp_path / str(number) / name
        path.parent.mkdir(parents=True)
        make(path)
        with time_limit():
            try:
                read(path)
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 1000, (kind, error)
            except Exception as error:
                raise AssertionError(
                    f"{reader} given {kind} raises {type(error).__name__}: {error}"
                ) from error
    assert peak_bytes() - before < MAX_GROWTH_BYTES, f"{reader} takes {(peak_bytes() - before) / 1e6:.0f} MB"


def test_the_format_of_shards_is_the_one_that_is_read() -> None:
    """The shard of the table is found: its name is one of a shard's."""
    assert FORMAT.startswith("open-ldm cache")
