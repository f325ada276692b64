"""What the emoji preparation refuses, and its script."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ldm.demos.emoji import prepare_emoji
from ldm.demos.emoji_source import (
    IMAGES_PACKAGE,
    NAMES_PACKAGE,
    find_package,
    npm_pack,
    read_names,
)
from ldm.errors import UserError
from tests.support.tiny_emoji import ROOT, STEMS, about, read_rows, webp, write_images, write_names, write_tgz


def refused(dest: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        prepare_emoji(dest, **settings)
    left = [path.name for path in dest.parent.iterdir() if path.name.startswith(f".{dest.name}")]
    assert left == [], "a half-made folder was left behind"
    return str(error.value)


def test_an_existing_dataset_is_never_overwritten(packages: Path, tmp_path: Path) -> None:
    dest = tmp_path / "emoji"
    dest.mkdir()
    (dest / "mine.txt").write_text("mine")
    assert "already exists" in refused(dest, packages=packages)
    assert [path.name for path in dest.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "emoji").mkdir()
    prepare_emoji(tmp_path / "emoji", size_px=8, packages=packages)
    assert len(read_rows(tmp_path / "emoji")) == 3


def test_wrong_settings_are_refused(packages: Path, tmp_path: Path) -> None:
    dest = tmp_path / "emoji"
    assert "did you mean 'clear'" in refused(dest, packages=packages, subset="cleer")
    assert "--size-px 512: choose 8 to 256" in refused(dest, packages=packages, size_px=512)
    assert "add --subset all or hands" in refused(dest, packages=packages, skin_tones=True)


def test_missing_wrong_and_double_packages_are_refused(packages: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no lobehub-fluent-emoji-3d-*.tgz" in refused(tmp_path / "emoji", packages=empty)
    assert "has no" in refused(tmp_path / "emoji", packages=tmp_path / "absent")
    write_names(packages, name="emojibase")
    assert "is the npm package 'emojibase'" in refused(tmp_path / "emoji", packages=packages)
    (packages / "emojibase-data-16.0.0.tgz").write_bytes(b"")
    assert "several versions of emojibase-data" in refused(tmp_path / "emoji", packages=packages)


def test_broken_packages_are_refused(packages: Path, tmp_path: Path) -> None:
    archive = packages / "lobehub-fluent-emoji-3d-1.1.0.tgz"
    write_images(packages, {"package/assets/1f34e.webp": b"no picture"})
    assert "1f34e.webp is broken" in refused(tmp_path / "emoji", packages=packages)
    archive.write_bytes(archive.read_bytes()[:400])
    assert "cannot be read as a .tgz" in refused(tmp_path / "emoji", packages=packages)
    archive.write_bytes(b"no archive")
    assert "cannot be read as a .tgz" in refused(tmp_path / "emoji", packages=packages)


def test_an_unwritable_dest_is_refused(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        prepare_emoji(tmp_path / "file" / "emoji", size_px=8, packages=packages)


def test_broken_json_is_refused(packages: Path, tmp_path: Path) -> None:
    files = {"package/package.json": about(NAMES_PACKAGE, "17.0.0"), "package/en/data.json": b"[{"}
    write_tgz(packages / "emojibase-data-17.0.0.tgz", files)
    assert "package/en/data.json is not JSON" in refused(tmp_path / "emoji", packages=packages)


def test_names_in_another_layout_are_refused(packages: Path, tmp_path: Path) -> None:
    write_names(packages, [{"label": "red apple", "order": 1}])
    message = refused(tmp_path / "emoji", packages=packages)
    assert "lacks 'group'" in message and "emojibase-data@17.0.0" in message


def test_nothing_is_written_outside_dest(packages: Path, tmp_path: Path) -> None:
    evil = {
        name: webp()
        for name in ("../evil.webp", "package/assets/../../../1f34a.webp", "../package/assets/1f34a.webp")
    }
    write_images(packages, evil)
    summary = prepare_emoji(tmp_path / "emoji", subset="all", size_px=8, packages=packages)
    assert summary["found"] == len(STEMS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["emoji", "npm"]
    assert not list(tmp_path.rglob("*.webp"))


def test_without_npm_the_hint_names_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refused(tmp_path / "emoji")
    assert "npm is not installed" in message and "--packages" in message


def test_a_failing_npm_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text('#!/bin/sh\necho "no such host" >&2\nexit 1\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"npm pack failed \(no such host\): check the network"):
        npm_pack(tmp_path)


def test_npm_is_asked_for_both_packages_by_version(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    npm = folder / "npm"
    npm.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/asked"\ncp "{packages}"/*.tgz .\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    assert prepare_emoji(tmp_path / "emoji", size_px=8)["used"] == 3
    asked = (tmp_path / "asked").read_text()
    assert f"{IMAGES_PACKAGE}@1.1.0" in asked and f"{NAMES_PACKAGE}@17.0.0" in asked


# The script


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/prepare_emoji.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_the_script_makes_a_dataset_and_then_refuses(packages: Path, tmp_path: Path) -> None:
    arguments = (str(tmp_path / "emoji"), "--size-px", "8", "--packages", str(packages))
    made = run_script(*arguments)
    assert (made.returncode, made.stderr) == (0, "")
    assert "3 of 10 images" in made.stdout
    again = run_script(*arguments)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1 and "already exists" in again.stderr


def test_names_are_sorted_and_typed(packages: Path) -> None:
    names = read_names(find_package(packages, NAMES_PACKAGE))
    assert [emoji.order for emoji in names] == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert [emoji.name for emoji in names if emoji.tone] == ["waving hand: dark skin tone"]
