"""Files that are complete or absent, and a manifest that names what changed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ldm.errors import UserError
from ldm.io.files import manifest_fault, read_tensors, write_bytes, write_manifest, write_tensors
from ldm.io.folders import new_folder
from ldm.io.json_files import read_json


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    dest = tmp_path / "deep/made"
    with pytest.raises(RuntimeError), new_folder(dest) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert not dest.exists() and not list((tmp_path / "deep").iterdir())
    with new_folder(dest) as folder:
        (folder / "a").write_text("x")
        assert not dest.exists()
    assert sorted(p.name for p in dest.iterdir()) == ["a", "manifest.json"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The operations on the disk, in order: "flush NAME" and "rename NAME"; temporary files have their final name."""
    done: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def plain(name: str) -> str:
        return name.removeprefix(".tmp-").rpartition("-")[0] if name.startswith(".tmp-") else name

    def flush(handle: int) -> None:
        done.append(f"flush {plain(Path(os.readlink(f'/proc/self/fd/{handle}')).name)}")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", flush)
    for name, real in (("rename", rename), ("replace", replace)):
        monkeypatch.setattr(
            Path,
            name,
            lambda path, to, real=real: (done.append(f"rename {plain(path.name)}"), real(path, to))[1],
        )
    yield done


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to find the file of a handle")
def test_files_are_flushed_before_they_are_renamed(tmp_path: Path, told: list[str]) -> None:
    """Otherwise, after a power failure, the new name could exist without its content."""
    write_bytes(tmp_path / "file", b"x")
    assert told == ["flush file", "rename file"]
    told.clear()
    with new_folder(tmp_path / "made") as folder:
        (folder / "sub").mkdir()
        for name in ("a", "sub/b"):
            (folder / name).write_text("x")  # not flushed, as by a library
    before, after = told[: told.index("rename made")], told[told.index("rename made") + 1 :]
    files = ["flush a", "flush b", "flush made", "flush manifest.json", "flush sub", "rename manifest.json"]
    assert sorted(set(before)) == files
    assert after == [f"flush {tmp_path.name}"]


def test_written_files_have_the_default_mode(tmp_path: Path) -> None:
    with new_folder(tmp_path / "made") as folder:
        write_tensors(folder / "a.safetensors", {"a": torch.ones(1)})
        (folder / "b.json").write_text("{}")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "made").iterdir()}
    (tmp_path / "plain").write_text("")
    assert modes == {(tmp_path / "plain").stat().st_mode & 0o777}


def test_an_existing_folder_is_replaced_only_on_request(tmp_path: Path) -> None:
    dest = tmp_path / "made"
    for replace, text in ((False, "old"), (True, "new")):
        with new_folder(dest, replace=replace) as folder:
            (folder / "a").write_text(text)
    with pytest.raises(UserError, match="exists already"), new_folder(dest):
        pass
    assert (dest / "a").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_a_file_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "new/file"
    write_bytes(path, b"one")
    reader = path.open("rb")  # it keeps reading the old file, which is not overwritten
    write_bytes(path, b"two")
    with reader:
        assert reader.read() == b"one"
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_manifest_names_what_changed(tmp_path: Path) -> None:
    for name in ("a", "sub/b"):
        write_bytes(tmp_path / name, b"data")
    assert manifest_fault(tmp_path) == f"{tmp_path / 'manifest.json'} is missing"
    write_manifest(tmp_path)
    assert manifest_fault(tmp_path) is None
    (tmp_path / "sub/b").write_bytes(b"dota")
    assert "sub/b has changed" in str(manifest_fault(tmp_path))
    (tmp_path / "sub/b").unlink()
    assert "sub/b is missing" in str(manifest_fault(tmp_path))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.ones(2).expand(3, 2), "b": torch.ones(1)})
    assert torch.equal(read_tensors(path)["a"], torch.ones(3, 2))
    path.write_bytes(path.read_bytes()[:-4])
    (tmp_path / "j.json").write_text("{")
    for read, name in ((read_tensors, "t.safetensors"), (read_json, "j.json")):
        with pytest.raises(UserError, match=name):
            read(tmp_path / name)  # type: ignore[operator]
        with pytest.raises(UserError, match="does not exist"):
            read(tmp_path / "gone")  # type: ignore[operator]


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match="the disk is full"):
            write_bytes(tmp_path / "big", b"x" * 5000)
        # as diffusers' `save_pretrained` writes it: the error is one of safetensors, with the number in its text
        with (
            pytest.raises(UserError, match="made: the disk is full"),
            new_folder(tmp_path / "made") as folder,
        ):
            save_file({"a": torch.ones(5000)}, folder / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_a_folder_on_proc_is_refused() -> None:
    with pytest.raises(UserError, match=r"^/proc/out cannot be written"), new_folder(Path("/proc/out")):
        pytest.fail("it was made")
