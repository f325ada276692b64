"""Only what this program wrote is removed or replaced, whatever else is in the way."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm.errors import LdmWarning, UserError
from ldm.io.files import write_json
from ldm.io.folders import new_folder, remove_leftovers
from ldm.io.ownership import check_replaceable, remove_written


def make(dest: Path, text: str = "old", replace: bool = False) -> Path:
    with new_folder(dest, replace=replace) as folder:
        (folder / "unet").mkdir()
        (folder / "unet/config.json").write_text(text)
        (folder / "model_index.json").write_text("{}")
    return dest


def everything(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def add_a_file(dest: Path) -> None:
    (dest / "unet/notes.txt").write_text("precious")


def change_a_file(dest: Path) -> None:
    (dest / "unet/config.json").write_text("mine")


def become_a_file(dest: Path) -> None:
    for path in sorted(dest.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    dest.rmdir()
    dest.write_text("precious")


def lose_the_list(dest: Path) -> None:
    (dest / "manifest.json").unlink()


def another_list(dest: Path) -> None:
    (dest / "manifest.json").write_text('{"name": "an app", "unet/config.json": 1}')


def a_list_alone(dest: Path) -> None:
    become_a_file(dest)
    dest.unlink()
    dest.mkdir()
    (dest / "manifest.json").write_text('{"icons": {}}')


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (add_a_file, "unet/notes.txt, which this program did not write"),
        (change_a_file, "unet/config.json, which has changed"),
        (become_a_file, "is not a folder"),
        (lose_the_list, "did not write"),
        (another_list, "did not write"),
        (a_list_alone, "manifest.json, which this program did not write"),
    ],
)
def test_anything_else_is_refused_by_name(spoil: Callable[[Path], None], named: str, tmp_path: Path) -> None:
    dest = make(tmp_path / "made")
    check_replaceable(dest)
    spoil(dest)
    before = everything(tmp_path)
    with pytest.raises(UserError, match=named):
        check_replaceable(dest)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("spoil", [add_a_file, become_a_file])
def test_even_if_nobody_asked_first_it_is_kept(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    dest = make(tmp_path / "made")
    spoil(dest)
    before = set(everything(tmp_path).values()) & {b"precious"}
    with pytest.warns(LdmWarning, match=r"it is now in .*made\.kept"):
        make(dest, "new", replace=True)
    assert (dest / "unet/config.json").read_text() == "new"
    assert before <= set(everything(tmp_path).values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "made.kept"]
    add_a_file(dest)
    with pytest.warns(LdmWarning, match=r"made\.kept-2"):
        make(dest, "newer", replace=True)
    assert everything(tmp_path / "made.kept-2") == {"unet/notes.txt": b"precious"}


def test_what_operating_systems_leave_is_nobodys(tmp_path: Path) -> None:
    dest = make(tmp_path / "made")
    (dest / ".DS_Store").write_text("x")
    check_replaceable(dest)
    (tmp_path / "disk/lost+found").mkdir(parents=True)
    make(tmp_path / "disk")
    check_replaceable(tmp_path / "disk")


def test_models_of_earlier_versions_are_known_by_their_names(tmp_path: Path) -> None:
    dest = make(tmp_path / "made")
    lose_the_list(dest)
    (dest / "ldm.json").write_text("{}")
    check_replaceable(dest)
    add_a_file(dest)
    with pytest.raises(UserError, match=r"notes\.txt"):
        check_replaceable(dest)


def export_of(dest: Path, **more: object) -> Path:
    files = {"a.safetensors": {"sha256": "2c26b46b", "size_bytes": 3}}
    report = {"made_by": {"program": "open-ldm"}, "files": files, **more}
    dest.mkdir()
    write_json(dest / "export.json", report)
    (dest / "README.md").write_text("card")
    return dest


def test_an_edited_card_is_kept(tmp_path: Path) -> None:
    check_replaceable(export_of(tmp_path / "earlier"))  # which did not list its card
    entry = {"sha256": "0" * 64, "size_bytes": 3}
    with pytest.raises(UserError, match=r"README\.md, which has changed"):
        check_replaceable(export_of(tmp_path / "edited", card_files={"README.md": entry}))


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    elsewhere = make(tmp_path / "elsewhere")
    (tmp_path / "step-000001").symlink_to(elsewhere)
    remove_written(tmp_path / "step-000001")
    assert (elsewhere / "unet/config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_a_linked_destination_is_written_where_the_link_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk/out")
    for text in ("one", "two"):
        make(tmp_path / "out", text, replace=True)
    assert (tmp_path / "disk/out/unet/config.json").read_text() == "two"
    assert (tmp_path / "out").is_symlink() and len(list((tmp_path / "disk").iterdir())) == 1


def test_a_run_puts_foreign_files_aside_when_it_clears_up(tmp_path: Path) -> None:
    make(tmp_path / ".old-step-000001-0a1b2c3d")
    add_a_file(tmp_path / ".old-step-000001-0a1b2c3d")
    (tmp_path / "step-000001").mkdir()
    with pytest.warns(LdmWarning, match=r"step-000001\.kept"):
        remove_leftovers(tmp_path)
    assert everything(tmp_path) == {"step-000001.kept/unet/notes.txt": b"precious"}


def test_hostile_lists_are_no_lists(tmp_path: Path) -> None:
    for number, text in enumerate(["[1]", "null", "{}", "[" * 5000, '{"files": 3}', "\udc80"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in ("export.json", "manifest.json"):
            (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match="did not write"):
            check_replaceable(folder)
    assert json.loads((tmp_path / "0/export.json").read_text()) == [1]
