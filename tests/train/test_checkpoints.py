"""Checkpoints are written atomically, verified and rotated; damaged ones are named, and a full disk is survived."""

import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.errors import LdmWarning, UserError
from ldm.io.files import (
    MANIFEST,
    check_free_space,
    manifest_fault,
    read_tensors,
    write_json,
    write_manifest,
    write_tensors,
)
from ldm.io.folders import remove_leftovers
from ldm.io.png import write_chunks
from tests.support import small_mounts
from tests.support.tiny_training import PointLoss, assert_same_run, make_settings, outcome, train
from train.loop.state import TrainState
from train.run.after_steps import PreviewStopped
from train.run.checkpoints import checkpoints, newest_whole, remove_old, save_checkpoint, step_of
from train.run.directory import RunDirectory
from train.run.signals import Interrupted


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of eight steps with all of its checkpoints."""
    run_dir = tmp_path_factory.mktemp("whole")
    train(make_settings(run_dir, save_every=2, keep_checkpoints=9))
    return run_dir


def steps(run_dir: Path) -> list[int]:
    return [step_of(path) for path in checkpoints(run_dir / "checkpoints")]


# Damage


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 20])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


FILES = ["weights.safetensors", "average.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_damage_is_named_and_the_checkpoint_before_is_found(
    tmp_path: Path, whole: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole / "checkpoints", folder)
    damage(folder / "step-000008" / name)
    newest, faults = newest_whole(folder)
    assert newest == folder / "step-000006"
    # a manifest that is still valid JSON names the file that no longer matches
    (fault,) = faults.values()
    assert f"step-000008/{name}" in fault or name == "manifest.json"


def test_a_run_goes_back_to_the_last_good_checkpoint_and_says_so(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    truncate(tmp_path / "checkpoints/step-000008/optimizer.safetensors")
    flip(tmp_path / "checkpoints/step-000006/weights.safetensors")
    train(make_settings(tmp_path, save_every=100))
    said = capsys.readouterr().err
    assert "step-000008/optimizer.safetensors has changed since it was written; going back to" in said
    assert "step-000006/weights.safetensors has changed since it was written; going back to" in said
    assert "resuming at step 4" in said
    assert_same_run(tmp_path, whole)
    assert steps(tmp_path) == [4, 8]  # two undamaged ones


def test_no_whole_checkpoint_is_no_fresh_start(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for checkpoint in checkpoints(tmp_path / "checkpoints"):
        truncate(checkpoint / "state.json")
    with pytest.raises(UserError, match=r"all checkpoints are damaged: .*step-000008/state.json has changed"):
        train(make_settings(tmp_path))


# Contents that lack something, with a manifest that agrees


def edit_tensors(name: str, change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        tensors = read_tensors(checkpoint / name)
        change(tensors)
        write_tensors(checkpoint / name, tensors)

    return damage


def without(tensors: dict[str, Tensor], beginning: str) -> None:
    for name in [name for name in tensors if name.startswith(beginning)]:
        del tensors[name]


def edit_numbers(**changes: Any) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        path = checkpoint / "state.json"
        write_json(path, json.loads(path.read_text()) | changes)

    return damage


def write_list(checkpoint: Path) -> None:
    write_json(checkpoint / "state.json", [])


MOMENT = "net.0.weight/exp_avg"
LACKING: dict[str, tuple[Callable[[Path], None], str]] = {
    "no moments": (
        edit_tensors("optimizer.safetensors", dict.clear),
        "the moments of net.0.bias are missing",
    ),
    "no moments of a weight": (
        edit_tensors("optimizer.safetensors", lambda t: without(t, "net.3.bias")),
        "the moments of net.3.bias are missing",
    ),
    "no second moment": (
        edit_tensors("optimizer.safetensors", lambda t: without(t, "net.0.weight/exp_avg_sq")),
        "net.0.weight/exp_avg_sq is missing",
    ),
    "a moment of another shape": (
        edit_tensors("optimizer.safetensors", lambda t: t.update({MOMENT: torch.zeros(4, 8)})),
        r"exp_avg is \[4, 8\], not \[8, 4\]",
    ),
    "moments of no weight": (
        edit_tensors("optimizer.safetensors", lambda t: t.update({"other/step": torch.zeros(())})),
        "other is not a trained weight",
    ),
    "no average": (edit_tensors("average.safetensors", dict.clear), "net.0.bias is missing"),
    "another step": (edit_numbers(step=4), "is of step 4"),
    "a step of another kind": (edit_numbers(step=[8]), r"step is \[8\] \(Input should be"),
    "metrics of another kind": (edit_numbers(window={"loss": "x"}), r"window\.loss is 'x' \(Input should be"),
    "a list for numbers": (write_list, r"state\.json: it holds \[\] \(Input should be"),
}


@pytest.mark.parametrize("name", LACKING)
def test_a_checkpoint_that_lacks_something_is_passed_over_for_the_one_before(
    tmp_path: Path, whole: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "checkpoints/step-000008"
    damage, said = LACKING[name]
    damage(newest)
    (newest / MANIFEST).unlink()
    write_manifest(newest)
    train(make_settings(tmp_path, save_every=100))
    assert re.search(rf"warning: .*{said}.*; going back to .*step-000006", capsys.readouterr().err)
    assert_same_run(tmp_path, whole)


def test_a_weight_without_a_gradient_needs_no_moments(tmp_path: Path) -> None:
    class Unused(PointLoss):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Linear(2, 2)

    constant = {"lr_schedule": "constant"}
    train(make_settings(tmp_path, num_steps=2, optim=constant), Unused())
    assert train(make_settings(tmp_path, num_steps=3, optim=constant), Unused()).step == 3


# Which are kept


def test_the_newest_stay_and_those_at_multiples(tmp_path: Path, whole: Path) -> None:
    assert steps(whole) == [2, 4, 6, 8]
    for number, (changes, kept) in enumerate(
        [
            ({"save_every": 3, "keep_checkpoints": 1}, [8]),
            ({"save_every": 1, "keep_checkpoints": 3}, [6, 7, 8]),
            ({"save_every": 1, "keep_checkpoints": 2, "keep_every": 3}, [3, 6, 7, 8]),
            ({"save_every": 100, "keep_checkpoints": 1, "keep_every": 3}, [3, 6, 8]),
        ]
    ):
        train(make_settings(tmp_path / str(number), **changes))
        assert steps(tmp_path / str(number)) == kept


def test_steps_are_compared_as_numbers_and_a_damaged_later_one_is_no_newest(tmp_path: Path) -> None:
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        (tmp_path / f"step-{step:06d}").mkdir()
    (tmp_path / "step-by-step").mkdir()
    remove_old(tmp_path / "step-1000000", 2, None)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [999_999, 1_000_000]
    assert (tmp_path / "step-by-step").exists()


def test_older_ones_go_only_after_the_new_one_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = train(make_settings(tmp_path, num_steps=2))
    rename = os.rename

    def rename_and_flip(source: Path, dest: Path) -> None:
        rename(source, dest)
        if Path(dest).name == "step-000003":
            flip(Path(dest) / "weights.safetensors")

    state.step = 3
    monkeypatch.setattr(os, "rename", rename_and_flip)
    with pytest.raises(UserError, match=r"just written is damaged.*step-000003/weights") as caught:
        save_checkpoint(state, tmp_path / "checkpoints", 1)
    good = tmp_path / "checkpoints/step-000002"
    assert f"the last good checkpoint is {good}" in str(caught.value)
    assert manifest_fault(good) is None


def test_no_checkpoint_holds_a_number_that_is_not_finite(tmp_path: Path) -> None:
    state = train(make_settings(tmp_path, num_steps=1))
    folder = tmp_path / "checkpoints"
    for tensor in (next(iter(state.module.parameters())), next(iter(state.average.tensors().values()))):
        before = tensor.detach().clone()
        for value in (float("nan"), float("inf")):
            with torch.no_grad():
                tensor.view(-1)[-1] = value
            state.step = 2
            with pytest.raises(
                UserError, match=r"no longer finite at step 2.*last good checkpoint is .*step-000001"
            ):
                save_checkpoint(state, folder, 1)
            assert steps(tmp_path) == [1]
        with torch.no_grad():
            tensor.copy_(before)


def test_another_network_is_refused(tmp_path: Path) -> None:
    class Wider(PointLoss):
        def __init__(self) -> None:
            super().__init__()
            self.net.append(torch.nn.Linear(1, 1))

    train(make_settings(tmp_path, num_steps=1))
    with pytest.raises(UserError, match="step-000001 holds another network"):
        train(make_settings(tmp_path, num_steps=2), Wider())


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    for name in (
        ".tmp-step-000004-ab12cd34",
        ".old-step-000002-ab12cd34",
        ".old-step-000003-ab12cd34",
        "step-000003",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(name)
    (tmp_path / ".tmp-config.yaml-ab12cd34").write_text("half")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000003"]
    assert (tmp_path / "step-000003/state.json").read_text() == "step-000003"


# A full disk


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Writing more to one file fails, as on a disk that fills up."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("num_bytes", [300, 800, 1100], ids=["weights", "optimizer", "manifest"])
def test_a_disk_that_fills_up_in_the_middle_leaves_the_last_checkpoint(
    tmp_path: Path, num_bytes: int
) -> None:
    state = train(make_settings(tmp_path, num_steps=1))
    folder = tmp_path / "checkpoints"
    before = outcome(tmp_path)[0]
    state.step = 2
    with files_of_at_most(num_bytes), pytest.raises(UserError, match="the disk is full") as caught:
        save_checkpoint(state, folder, 1)
    assert f"the last good checkpoint is {folder / 'step-000001'}" in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["step-000001"]
    assert manifest_fault(folder / "step-000001") is None
    assert all(torch.equal(before[name], tensor) for name, tensor in outcome(tmp_path)[0].items())
    save_checkpoint(state, folder, 1)
    assert steps(tmp_path) == [2]


def test_the_space_is_looked_at_before_writing(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_free_space(tmp_path / "not/yet/there", free // 2)
    with pytest.raises(
        UserError, match=r"the disk is full: .* MB are needed, .* MB are free: free some space"
    ):
        check_free_space(tmp_path / "not/yet/there", free * 2)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of three megabytes."""
    with small_mounts.small_disk(tmp_path / "small") as folder:
        yield folder


@pytest.mark.parametrize(
    ("room", "said"), [(2**19, r"the disk is full: .* needed"), (2**20 + 3000, "the disk is full")]
)
def test_a_run_on_a_full_disk_stops_and_goes_on_when_there_is_room(
    small_disk: Path, whole: Path, room: int, said: str
) -> None:
    settings = make_settings(small_disk / "run", save_every=2)
    ballast = small_disk / "ballast"

    def fill(number: int) -> None:
        if number == 3:  # the first checkpoint, at step 2, is written
            ballast.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - room))

    with pytest.raises(UserError, match=said + ".*the last good checkpoint is .*step-000002"):
        train(settings, PointLoss(on_forward=fill))
    assert steps(small_disk / "run") == [2] and not list((small_disk / "run/checkpoints").glob(".*"))
    ballast.unlink()
    train(settings)
    assert_same_run(small_disk / "run", whole)


def test_each_file_holds_every_trained_weight(whole: Path) -> None:
    checkpoint = whole / "checkpoints/step-000004"
    names = {name for name, _ in PointLoss().named_parameters()}
    for file, suffixes in {
        "weights": [""],
        "average": [""],
        "optimizer": ["/step", "/exp_avg", "/exp_avg_sq"],
    }.items():
        assert read_tensors(checkpoint / f"{file}.safetensors").keys() == {
            n + s for n in names for s in suffixes
        }


PAGE = 4096  # bytes; a file on a small disk takes whole pages


@pytest.mark.parametrize("num_pages", [0, 1, 2, 3, 5, 8])
def test_wherever_the_disk_fills_up_the_run_goes_on_once_there_is_room(
    tmp_path: Path, whole: Path, num_pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, previews and checkpoints are written in turn; the disk is full at another of these writes each time."""
    monkeypatch.setattr("train.run.checkpoints.SMALL_FILES_BYTES", 0)
    with small_mounts.small_disk(tmp_path / "small", "1m") as disk:
        settings = make_settings(disk / "run", save_every=2, preview_every=1)

        def preview(state: TrainState, path: Path) -> None:
            write_chunks(path, Image.effect_noise((64, 64), 50), {}, overwrite=True)

        def fill(number: int) -> None:
            if number == 3:
                left = shutil.disk_usage(disk).free - num_pages * PAGE
                (disk / "ballast").write_bytes(b"x" * left)

        with pytest.raises(UserError, match="the disk is full"):
            train(settings, PointLoss(on_forward=fill), preview=preview)
        assert steps(disk / "run")[0] == 2 and not list((disk / "run").rglob(".tmp-*"))
        (disk / "ballast").unlink()
        train(settings, preview=preview)
        assert_same_run(disk / "run", whole)


def test_a_signal_during_a_preview_is_answered_at_once(tmp_path: Path, whole: Path) -> None:
    settings = make_settings(tmp_path, preview_every=3)

    def endless(state: TrainState, path: Path) -> None:
        with state.average.applied():
            signal.raise_signal(signal.SIGUSR1)
            raise PreviewStopped

    with pytest.raises(Interrupted, match="saved at step 3") as caught:
        train(settings, preview=endless)
    assert caught.value.exit_code == 143 and steps(tmp_path) == [3]
    train(settings)
    assert_same_run(tmp_path, whole)


def test_what_a_killed_process_left_is_cleared_before_free_space_is_asked_for(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, num_steps=1)
    train(settings)
    left = tmp_path / "checkpoints/.tmp-step-000002-0a1b2c3d"
    left.mkdir()
    RunDirectory(settings).lock_existing()
    assert not left.exists()


def test_old_checkpoints_with_files_of_others_are_kept_aside(tmp_path: Path) -> None:
    train(make_settings(tmp_path, num_steps=2))
    (tmp_path / "checkpoints/step-000002/notes.txt").write_text("precious")
    with pytest.warns(LdmWarning, match=r"contained notes\.txt"):
        train(make_settings(tmp_path, num_steps=4, keep_checkpoints=1))
    assert [path.name for path in (tmp_path / "checkpoints/step-000002.kept").iterdir()] == ["notes.txt"]
    assert steps(tmp_path) == [4]
