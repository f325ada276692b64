"""Forgetting by replay: the new run equals, to the last bit, one that never had the samples."""

import json
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.data.leave_out import hashed_id
from tests.support.tiny_forgetting import Forgetful, run_contents, write_images
from train.run.checkpoints import checkpoints
from train.run.forget import main as forget

TINY: dict[str, Any] = {"num_steps": 4, "global_batch_size": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Forgetful:
    return Forgetful(tmp_path_factory.mktemp("forget"), 6, {}, TINY)


@pytest.fixture(scope="module")
def run(place: Forgetful) -> Path:
    """Four steps on six images, two at once, with every checkpoint."""
    return place.train("run")


@pytest.fixture(scope="module")
def first_uses(run: Path) -> dict[str, int]:
    """The first step that uses each image, from the order itself."""
    from ldm.data.order import BatchOrder

    ids = [f"{number}.png" for number in range(6)]
    steps = enumerate(BatchOrder(0, [(16, 16)] * 6, 2, 0, 3, sample_ids=ids), 1)
    return {ids[key.sample_index]: step for step, batch in steps for key in batch}


def used_in(first_uses: dict[str, int], step: int) -> str:
    """An image that is first used in a step."""
    return next(id_ for id_, first in first_uses.items() if first == step)


def told(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def test_a_run_forgets_to_the_last_bit_and_stays_as_it_is(
    place: Forgetful, run: Path, first_uses: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    gone = used_in(first_uses, 3)
    new = place.root / "new"
    assert forget(["plan", str(run), str(new), gone]) == 0 and not new.exists()
    assert forget(["write", str(run), str(new), gone]) == 0
    facts = told(capsys.readouterr().out)
    assert (facts["first_used_step"], facts["from_step"], facts["num_steps"]) == (3, 2, 2)
    assert facts["num_samples"] == 1 and facts["elapsed_sec"] > 0
    place.resume(new)
    assert run_contents(new) == run_contents(place.train("never", {gone}))
    assert run_contents(new)["weights.safetensors"] != run_contents(run)["weights.safetensors"]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    written = [path for path in new.rglob("*") if path.is_file() and gone.encode() in path.read_bytes()]
    assert not written  # not even its name is kept
    assert json.loads((new / "forgotten.json").read_text())["samples"] == [hashed_id(gone)]
    assert forget(["write", str(run), str(new), gone]) == 2  # the place is taken


def test_what_cannot_be_forgotten_is_one_line(
    place: Forgetful, run: Path, first_uses: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*ids: str, source: Path = run) -> str:
        assert forget(["write", str(source), str(place.root / "other"), *ids]) == 2
        assert not (place.root / "other").exists()
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("error: ")
        return lines[-1]

    early = used_in(first_uses, 1)
    assert "first used in step 1" in refused(early) and hashed_id(early) in refused(early)
    assert "no sample is called '7.png'" in refused("7.png")
    assert "no image would be left" in refused(*first_uses)
    assert "is not a run" in refused("0.png", source=place.root)
    config = run / "config.yaml"
    text = config.read_text()
    try:
        config.write_text(text.replace("order: keyed", "order: shuffled"))
        assert "only a run with data.order = keyed can forget" in refused("0.png")
    finally:
        config.write_text(text)


def test_a_number_measured_on_all_images_cannot_be_forgotten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = {
        "program": "denoiser", "run_dir": str(tmp_path), "num_steps": 200, "path": "edm",
        "parts": {"autoencoder": "a", "text_encoder": "b"}, "data": {"path": "c", "order": "keyed"},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(tree))
    assert forget(["plan", str(tmp_path), str(tmp_path / "new"), "0.png"]) == 2
    assert "edm.sigma_data was measured on all images" in capsys.readouterr().err


def test_equal_images_and_models_that_saw_it_are_named(
    tmp_path: Path, run: Path, first_uses: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    gone = used_in(first_uses, 3)
    images = write_images(tmp_path / "data", 6)
    other = "0.png" if gone != "0.png" else "3.png"
    (images / other).write_bytes((images / gone).read_bytes())
    fork = Forgetful(tmp_path, 6, {}, {**TINY, "fork_from": str(run)}).train_on(images, "fork")
    assert forget(["plan", str(fork), str(tmp_path / "new"), gone]) == 0
    notes = told(capsys.readouterr().out)["notes"]
    assert f"1 other sample has the same image and will still be learned: '{other}'" in notes
    assert f"fork_from = {run} was trained on a forgotten sample and stays as it is" in notes


def extended(place: Forgetful, images: Path, name: str, num_steps: int, more_steps: int) -> Path:
    """A run of `num_steps` steps under a cosine schedule, extended to `more_steps`."""
    optim = {"num_warmup_steps": 0}
    place.train_on(images, name, num_steps=num_steps, optim=optim)
    return place.train_on(images, name, num_steps=more_steps, optim=optim, keep_checkpoints=9)


def test_a_run_whose_settings_changed_in_the_steps_to_repeat_says_so(
    place: Forgetful, first_uses: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    images, gone = write_images(place.root / "data-extended", 6), used_in(first_uses, 2)
    run = extended(place, images, "extended", 2, 3)
    call = [str(run), str(place.root / "new-extended"), gone]
    assert forget(["plan", *call]) == 0
    facts = told(capsys.readouterr().out)
    assert facts["changed_settings"] == ["num_steps was 2 until step 2"]
    assert any("does not equal this run" in note for note in facts["notes"])
    (run / "changed_settings.jsonl").unlink()  # as of an earlier version
    assert forget(["write", *call]) == 0
    (known,) = told(capsys.readouterr().out)["changed_settings"]
    assert known == "the learning rate of step 2 was 5.05e-05 and would now be 7.525e-05"
    assert json.loads((place.root / "new-extended/forgotten.json").read_text())["changed_settings"] == [known]


def test_settings_that_changed_before_the_steps_to_repeat_are_no_reason(
    place: Forgetful, first_uses: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    images, gone = write_images(place.root / "data-early", 6), used_in(first_uses, 3)
    early, new = extended(place, images, "early", 2, 3), place.root / "new-early"
    assert forget(["write", str(early), str(new), gone]) == 0
    assert told(capsys.readouterr().out)["changed_settings"] == []
    place.resume(new)
    without = write_images(place.root / "data-early-never", 6, {gone})
    assert run_contents(new) == run_contents(extended(place, without, "early-never", 2, 3))


@pytest.fixture
def planned_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's process is this one, which has torch loaded already."""

    def run_here(
        command: list[str], *, env: object, stdout: int, stderr: int | None
    ) -> CompletedProcess[bytes]:
        assert command[1:3] == ["-m", "train.run.forget"]
        errors = StringIO()
        with redirect_stdout(StringIO()) as out, redirect_stderr(errors if stderr else sys.stderr):
            code = forget(command[3:])
        return CompletedProcess(command, code, out.getvalue().encode(), errors.getvalue().encode())

    monkeypatch.setattr("ldm.cli.forget.subprocess.run", run_here)


@pytest.mark.usefixtures("planned_here")
def test_the_command_prints_its_plan_and_refuses_in_one_line(
    place: Forgetful, run: Path, first_uses: dict[str, int]
) -> None:
    call = ["forget", str(run), "--run-dir", str(place.root / "cli"), "--plan", "--json", "--sample"]
    done = CliRunner().invoke(app, [*call, used_in(first_uses, 3)])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["first_used_step"], facts["from_step"], facts["num_steps"]) == (3, 2, 2)
    for more in ([], ["--quiet"]):
        refused = CliRunner().invoke(app, [*call, "7.png", *more])
        (line,) = refused.stderr.splitlines()
        assert refused.exit_code == 2 and not refused.stdout
        assert line.startswith("error: ") and "no sample is called '7.png'" in line
    assert not (place.root / "cli").exists()


# Twenty random samples

MANY: dict[str, Any] = {
    "num_steps": 40,
    "global_batch_size": 4,
    "max_micro_batch": 3,
    "optim": {"num_warmup_steps": 2, "average": {"widths": [0.05, 0.1], "snapshot_every": 5}},
    "captions": {"dropout": 0.2},
    "validation": {"every": 4, "keep_best": True, "num_timesteps_per_sample": 2},
}
DATA: dict[str, Any] = {
    "buckets": True,
    "flip": True,
    "crop_variants": 3,
    "repeats": 2,
    "holdout_fraction": 0.1,
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Forgetful, Path]]:
    """Forty images, each twice an epoch, in three buckets, in two micro-batches, resumed from step 13."""
    place = Forgetful(tmp_path_factory.mktemp("large"), 40, DATA, MANY)
    run = place.train("large")
    for checkpoint in checkpoints(run / "checkpoints")[13:]:
        shutil.rmtree(checkpoint)
    place.resume(run)
    yield place, run


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_random_removals_are_all_equal_to_the_last_bit(large: tuple[Forgetful, Path]) -> None:
    place, run = large
    draw, num_equal, tried = random.Random(1), 0, []
    numbers = draw.sample(range(40), 40)
    while num_equal < 20:
        gone = [f"{numbers.pop()}.png" for _ in range(draw.choice([1, 1, 1, 2]))]
        new = place.root / f"new-{num_equal}"
        if forget(["write", str(run), str(new), *gone]) != 0:
            continue  # one of them is used in the first step
        tried.append(gone)
        place.resume(new)
        never = place.train(f"never-{num_equal}", gone)
        assert run_contents(new) == run_contents(never), gone
        num_equal += 1
    assert any(len(gone) == 2 for gone in tried)
