"""Files whole or absent, and a manifest that names what changed."""

from pathlib import Path

import pytest
import torch

from ldm.errors import UserError
from ldm.files import (
    manifest_fault,
    new_folder,
    read_json,
    read_tensors,
    write_bytes,
    write_manifest,
    write_tensors,
)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    dest = tmp_path / "deep/made"
    with pytest.raises(RuntimeError), new_folder(dest) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert not dest.exists() and not list((tmp_path / "deep").iterdir())
    with new_folder(dest) as folder:
        (folder / "a").write_text("x")
        assert not dest.exists()
    assert [p.name for p in dest.iterdir()] == ["a"]


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    with new_folder(tmp_path / "made") as folder:
        write_tensors(folder / "a.safetensors", {"a": torch.ones(1)})
        (folder / "b.json").write_text("{}")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "made").iterdir()}
    (tmp_path / "plain").write_text("")
    assert modes == {(tmp_path / "plain").stat().st_mode & 0o777}


def test_a_folder_that_holds_something_is_kept_unless_replacing(tmp_path: Path) -> None:
    dest = tmp_path / "made"
    for replace, text in ((False, "old"), (True, "new")):
        with new_folder(dest, replace=replace) as folder:
            (folder / "a").write_text(text)
    with pytest.raises(UserError, match="exists already"), new_folder(dest):
        pass
    assert (dest / "a").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new/file"
    write_bytes(path, b"one")
    reader = path.open("rb")  # a reader of the old file goes on reading the old one: it was not written over
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


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match="the disk is full"):
            write_bytes(tmp_path / "big", b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_a_folder_where_none_can_be_made_is_refused() -> None:
    with pytest.raises(UserError, match=r"^/proc/out cannot be written"), new_folder(Path("/proc/out")):
        pytest.fail("it was made")
