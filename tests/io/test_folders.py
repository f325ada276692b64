"""Folders at mount points, and what killed writers leave behind."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

import ldm.io.folders
from ldm.errors import UserError
from ldm.io.files import write_bytes
from ldm.io.folders import is_mount, is_taken, new_folder
from ldm.io.ownership import check_replaceable
from ldm.io.temporary import claim, remove_abandoned_files, working_folder
from tests.support.small_mounts import bound, small_disk


def make(dest: Path, text: str = "old", replace: bool = False) -> None:
    with new_folder(dest, replace=replace) as folder:
        (folder / "sub").mkdir()
        for name in ("a", "sub/b", "model_index.json"):
            (folder / name).write_text(text)


def texts(dest: Path) -> dict[str, str]:
    files = (path for path in dest.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(dest).as_posix(): path.read_text() for path in files}


def all_of(text: str) -> dict[str, str]:
    return dict.fromkeys(("a", "sub/b", "model_index.json"), text)


# Mount points


@pytest.mark.parametrize("mounted", [bound, small_disk])
def test_a_mount_point_is_filled_in_place(
    mounted: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    with mounted(tmp_path / "a mount") as dest:
        assert is_mount(dest) and not is_mount(tmp_path)
        (dest / "lost+found").mkdir()
        assert not is_taken(dest)
        make(dest, "one")
        assert texts(dest) == all_of("one")
        with pytest.raises(UserError, match="exists already"):
            make(dest)
        check_replaceable(dest)
        make(dest, "two", replace=True)
        assert texts(dest) == all_of("two")
        assert sorted(path.name for path in dest.iterdir()) == [
            "a", "lost+found", "manifest.json", "model_index.json", "sub",
        ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a mount"]


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder counts as one that cannot be renamed."""
    monkeypatch.setattr(ldm.io.folders, "is_mount", lambda folder: True)


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """The names moved into place, in order."""
    done: list[str] = []
    real = ldm.io.folders.shutil.move
    monkeypatch.setattr(
        ldm.io.folders.shutil, "move", lambda path, to: (done.append(Path(to).name), real(path, to))[1]
    )
    yield done


@pytest.mark.usefixtures("in_place")
def test_the_list_of_files_comes_last(tmp_path: Path, moved: list[str]) -> None:
    make(tmp_path)
    assert moved[-2:] == ["model_index.json", "manifest.json"] and sorted(moved[:-2]) == ["a", "sub"]


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize("number", range(4))
def test_a_fill_that_fails_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    make(tmp_path, "one")
    real, left = ldm.io.folders.shutil.move, number

    def failing(path: Path, to: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        real(path, to)

    monkeypatch.setattr(ldm.io.folders.shutil, "move", failing)
    with pytest.raises(UserError, match="the disk is full"):
        make(tmp_path, "two", replace=True)
    assert texts(tmp_path) == all_of("one")
    check_replaceable(tmp_path)


# Killed writers


def in_a_fork(work: Callable[[], None]) -> None:
    """Do some work in another process, which ends without cleaning up."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(1)
    os.waitpid(pid, 0)


def killed_while_writing(dest: Path, replace: bool = False) -> None:
    def work() -> None:
        with new_folder(dest, replace=replace) as folder:
            (folder / "big").write_text("x" * 100)
            os.kill(os.getpid(), signal.SIGKILL)

    in_a_fork(work)


def killed_at_move(dest: Path, name: str, number: int) -> None:
    """Killed before the given call of `Path.rename` or `shutil.move` while `dest` is replaced."""

    def work() -> None:
        where = Path if name == "rename" else ldm.io.folders.shutil
        real, left = getattr(where, name), number

        def counted(path: Path, to: Path) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(path, to)

        setattr(where, name, counted)
        make(dest, "two", replace=True)

    in_a_fork(work)


def test_what_a_killed_call_left_is_removed_by_the_next(tmp_path: Path) -> None:
    dest = tmp_path / "out"
    killed_while_writing(dest)
    assert len(list(tmp_path.iterdir())) == 2  # the folder and its lock file
    make(dest)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_was_moved_aside_is_put_back(tmp_path: Path, number: int) -> None:
    dest = tmp_path / "out"
    make(dest, "one")
    killed_at_move(dest, "rename", number)
    with new_folder(dest, replace=True) as folder:
        assert texts(dest) == all_of("two" if number > 1 else "one")
        (folder / "a").write_text("three")
    assert texts(dest) == {"a": "three"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize(
    ("name", "number"), [("rename", 0), ("rename", 2), ("move", 0), ("move", 2), ("move", 3), ("move", 4)]
)
def test_a_fill_that_was_killed_is_undone_by_the_next_call(tmp_path: Path, name: str, number: int) -> None:
    make(tmp_path, "one")
    killed_at_move(tmp_path, name, number)
    check_replaceable_after_clearing(tmp_path)
    assert texts(tmp_path) == all_of("two" if (name, number) == ("move", 4) else "one")
    make(tmp_path, "three", replace=True)
    assert texts(tmp_path) == all_of("three")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def check_replaceable_after_clearing(dest: Path) -> None:
    ldm.io.folders.remove_abandoned(dest)
    check_replaceable(dest)


def test_a_foreign_folder_with_such_a_name_is_left(tmp_path: Path) -> None:
    foreign = tmp_path / ".tmp-out-0a1b2c3d"
    foreign.mkdir()
    (foreign / "mine").write_text("precious")
    other = tmp_path / ".tmp-out-00000000"
    other.mkdir()
    other.with_name(other.name + ".lock").write_text("not ours")
    make(tmp_path / "out")
    assert (foreign / "mine").read_text() == "precious" and other.is_dir()


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as slow:
        (slow / "a").write_text("slow")
        in_a_fork(lambda: make(tmp_path / "out", "quick"))
        assert texts(tmp_path / "out") == all_of("quick") and (slow / "a").read_text() == "slow"
        (tmp_path / "out").rename(tmp_path / "quick")
    assert texts(tmp_path / "out") == {"a": "slow"}


def test_temporary_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    def work(name: str) -> None:
        os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        write_bytes(tmp_path / name, b"x")

    for name in ("a", "of another program"):
        in_a_fork(partial(work, name))
    living = tmp_path / ".tmp-a-0a1b2c3d"
    (tmp_path / ".tmp-a-00000000").symlink_to(living)
    with living.open("wb") as file:
        claim(file.fileno())
        assert len(list(tmp_path.iterdir())) == 4
        remove_abandoned_files(tmp_path, lambda name: name == "a")
        names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 3 and living.name in names and ".tmp-a-00000000" in names


def test_what_appeared_in_the_meantime_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists by now"), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("slow")
        make(tmp_path / "out", "quick")
    assert texts(tmp_path / "out") == all_of("quick") and len(list(tmp_path.iterdir())) == 1


def test_working_folders_of_killed_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "ldm-check-mine").mkdir()

    def work() -> None:
        with working_folder("check") as folder:
            (folder / "big").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)

    in_a_fork(work)
    assert len(list(tmp_path.iterdir())) == 3
    with working_folder("check") as folder:
        assert not list(folder.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["ldm-check-mine"]
