"""The page of training runs: what it shows of a run's folder, what it starts and stops, and what it refuses."""

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.cli.served_runs import run_sources
from ldm.evaluation.curves import read_metrics, series
from ldm.io.images import image_grid
from ldm.io.locks import LOCK, FolderLock, holder
from ldm.web.application import make_application
from ldm.web.guard import Guard
from ldm.web.loss_curves import MOST_POINTS, LossCurves
from ldm.web.runs_api import Runs
from ldm.web.training import LOG_LINES, OutputLog
from ldm.web.watched_run import RunSource
from tests.support.chromium import CHROMIUM, Browser, browser
from tests.support.tiny_curves import rows_of, write_run
from tests.support.tiny_images import photo
from tests.support.tiny_runs import AUTOENCODER, write_config, write_squares
from tests.support.tiny_training import make_settings, train
from tests.support.tiny_web import Answer, call, listening, make_service
from train.run.best import best_step

CONFIG = "program: denoiser\nnum_steps: 10\npreview: {prompts: [a red apple, a cat]}\n"
SAVES = """
import signal, sys, time
def save(number, frame):
    print("saved", flush=True)
    time.sleep(0.3)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("training", flush=True)
time.sleep(60)
"""
"""A program that answers SIGTERM as a training does."""


def serving(*sources: RunSource, token: str = "") -> Guard:
    return make_application(make_service(), runs=Runs(sources), token=token)


def runs_in(guard: Guard) -> Runs:
    found: Runs = guard.app.state.runs  # type: ignore[attr-defined]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that stopped at step 5 of 10, with two previews and a ledger."""
    run = write_run(tmp_path / "run", rows_of())
    (run / "config.yaml").write_text(CONFIG)
    (run / "previews").mkdir()
    for step in (2, 4):
        grid = image_grid([photo(16, 16, seed=step), photo(16, 16, seed=step + 1)], 2)
        grid.save(run / "previews" / f"step-{step:06d}.png")
    (run / "ledger").mkdir()
    samples = [
        {"sample_id": f"{n}.png", "caption": "a", "loss": n, "stderr": 0.1, "reasons": []} for n in range(30)
    ]
    (run / "ledger" / "ledger.json").write_text(json.dumps({"step": 5, "samples": samples}))
    return run


@pytest.fixture
def guard(folder: Path) -> Guard:
    return serving(RunSource("run", folder))


@pytest.fixture
def trainable(tmp_path: Path) -> Iterator[Guard]:
    """A run whose training is a program that answers signals as ours do."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    made = serving(RunSource("run", tmp_path / "run", config, [sys.executable, "-S", "-c", SAVES]))
    yield made
    runs_in(made).close()


def state(guard: Guard, query: str = "") -> Any:
    answer = call(guard, f"/ldm/runs/0{query}")
    assert answer.status == 200, answer.body
    return answer.json


def joined(points: list[list[float]], curves: Any, name: str) -> list[list[float]]:
    """What the page has after another answer."""
    return [point for point in points if point[0] <= curves["after"]] + curves[name]


# What is shown


def test_a_real_run_is_read_as_the_training_program_wrote_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(make_settings(run))
    found = state(serving(RunSource("run", run)))
    rows = read_metrics(run)
    assert (found["state"], found["step"], found["num_steps"], found["has_begun"]) == ("finished", 8, 8, True)
    for name, key in (("loss", "loss"), ("held_out", "validation_loss")):
        assert np.array_equal(np.array(found["curves"][name]).T, np.stack(series(rows, key)))
    assert found["curves"]["best"][0] == best_step(rows)
    assert found["elapsed_sec"] == rows[-1]["elapsed_sec"]


def test_previews_prompts_reports_and_the_ledger_are_shown(guard: Guard, folder: Path) -> None:
    (folder / "data_report.html").write_text("<title>Data report</title><script>alert(1)</script>")
    found = state(guard)
    assert (found["state"], found["step"], found["num_steps"]) == ("stopped", 5, 10)
    assert [step for step, _ in found["previews"]] == [2, 4]
    assert (found["prompts"], found["columns"]) == (["a red apple", "a cat"], 2)
    assert found["pages"] == ["data-report"]
    png = call(guard, "/ldm/runs/0/previews/4.png")
    assert png.body == (folder / "previews" / "step-000004.png").read_bytes()
    report = call(guard, "/ldm/runs/0/pages/data-report")
    policy = report.headers["content-security-policy"]
    assert report.status == 200 and "sandbox" in policy and "script-src" not in policy
    ledger = call(guard, "/ldm/runs/0/ledger").json
    assert [row["sample_id"] for row in ledger["samples"][:2]] == ["29.png", "28.png"]
    assert (len(ledger["samples"]), ledger["num_samples"]) == (20, 30)
    listed = call(guard, "/ldm/runs").json["runs"]
    assert [(run["number"], run["name"], run["can_start"]) for run in listed] == [(0, "run", False)]


def test_the_page_has_the_policy_of_the_other_one(guard: Guard) -> None:
    page, other = call(guard, "/runs"), call(guard, "/")
    assert page.status == 200 and b"runs.js" in page.body and b"<style" not in page.body
    assert page.headers["content-security-policy"] == other.headers["content-security-policy"]
    for name in ("runs.js", "runs.css", "chart.js", "requests.js"):
        assert call(guard, f"/static/{name}").status == 200


def test_only_new_points_are_sent_and_a_line_cut_short_waits(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    guard = serving(RunSource("run", folder))
    known = state(guard)["curves"]
    points, held_out = known["loss"], known["held_out"]
    for cut in (
        '{"step": 6, "loss"',
        ": 0.05}\n",
        '{"step": 6, "validation_loss": 0.1}\n',
        '{"step": 7, "loss": NaN}\n',
    ):
        with path.open("a") as file:
            file.write(cut)
        new = state(guard, f"?after={known['next']}&key={known['key']}")["curves"]
        assert len(new["loss"]) <= 2 and new["after"] >= 4
        points, held_out = joined(points, new, "loss"), joined(held_out, new, "held_out")
        known = new
    fresh = state(guard)["curves"]
    assert points == fresh["loss"] and points[-2:] == [[6, 0.05], [7, None]]
    assert held_out == fresh["held_out"]
    assert fresh["held_out"][-1] == [6, 0.1] and fresh["best"] == [6, 0.1]


def test_a_run_that_took_no_time_has_one(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 1.0, "elapsed_sec": 0.0}, {"step": 2, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves = LossCurves(tmp_path)
    curves.look()
    assert (curves.last_step, curves.elapsed_sec) == (2, 0.0)


def test_a_long_run_is_thinned_and_the_points_stay_equal(tmp_path: Path) -> None:
    """Rows are appended one by one; a point for several rows is sent again until it is complete."""
    rows: list[dict[str, Any]] = []
    for step in range(2, 20 * MOST_POINTS, 2):
        rows.append({"step": step, "loss": float(step % 7)})
        rows += [{"step": step + 1, "validation_loss": 1.0}] if step % 500 == 0 else []
    run = write_run(tmp_path / "run", rows[:-300])
    curves, points, step, key = LossCurves(run), [], -1.0, ""
    for number in range(301):
        if number:
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(rows[number - 301]) + "\n")
        curves.look()
        new = curves.points_after(step, key)
        assert not number or len(new["loss"]) <= 2
        points, step, key = joined(points, new, "loss"), new["next"], new["key"]
    assert MOST_POINTS / 2 < len(points) <= MOST_POINTS
    assert points == curves.points_after(-1, "")["loss"]
    assert points[-1][0] == 20 * MOST_POINTS - 2
    assert points[0] == (32, np.mean([step % 7 for step in range(2, 33, 2)]))


def test_a_resumed_run_is_read_again_from_its_start(folder: Path, guard: Guard) -> None:
    known = state(guard)["curves"]
    write = folder / "metrics.jsonl"
    write.write_text(
        "".join(json.dumps({"step": n, "loss": 9.0, "call_sec": n}) + "\n" for n in range(1, 40))
    )
    new = state(guard, f"?after={known['next']}&key={known['key']}")
    assert new["curves"]["after"] == -1 and new["curves"]["loss"][0] == [1, 9.0]
    assert new["step"] == 39 and new["curves"]["held_out"] == []


def test_a_run_that_is_held_elsewhere_is_running_with_its_speed(folder: Path, guard: Guard) -> None:
    path = folder / "metrics.jsonl"
    path.write_text(
        "".join(json.dumps({"step": n, "loss": 1.0, "call_sec": 2 * n}) + "\n" for n in range(1, 7))
    )
    lock = FolderLock(folder)
    found = state(guard)
    assert (found["state"], found["note"]) == (
        "running",
        f"by process {os.getpid()} on {os.uname().nodename}",
    )
    assert (found["steps_per_sec"], found["left_sec"]) == (0.5, 8.0)
    lock.release()
    assert state(guard)["state"] == "stopped"


def test_looking_at_a_lock_changes_nothing_and_does_not_keep_a_run_from_starting(tmp_path: Path) -> None:
    assert holder(tmp_path) is None and not list(tmp_path.iterdir())
    FolderLock(tmp_path).release()
    before = (tmp_path / LOCK).read_bytes(), (tmp_path / LOCK).stat().st_mtime_ns
    assert holder(tmp_path) is None
    assert ((tmp_path / LOCK).read_bytes(), (tmp_path / LOCK).stat().st_mtime_ns) == before
    with (tmp_path / LOCK).open("rb") as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        release = threading.Timer(0.05, fcntl.flock, (looked_at.fileno(), fcntl.LOCK_UN))
        release.start()
        FolderLock(tmp_path).release()
        release.join()


# Start and stop


def post(guard: Guard, action: str, **options: Any) -> Answer:
    return call(guard, f"/ldm/runs/0/{action}", method="POST", **options)


def until(guard: Guard, wanted: str, sec: float = 20) -> Any:
    end = time.monotonic() + sec
    while (found := state(guard))["state"] != wanted:
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found


def lines(guard: Guard, wanted: int) -> list[str]:
    end = time.monotonic() + 20
    while len(found := state(guard)["log"]["lines"]) < wanted:
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return list(found)


def test_a_training_is_started_once_and_told_to_stop_once(trainable: Guard) -> None:
    assert (state(trainable)["state"], state(trainable)["can_start"]) == ("not begun", True)
    assert post(trainable, "start").status == 202
    assert lines(trainable, 1) == ["training"]
    again = post(trainable, "start")
    assert again.status == 409 and again.error == "run is training already: stop it first"
    assert (state(trainable)["can_start"], state(trainable)["can_stop"]) == (False, True)
    assert [post(trainable, "stop").status for _ in range(3)] == [202] * 3
    assert state(trainable)["state"] == "stopping"
    assert until(trainable, "not begun")["can_start"]  # this program has made no folder
    assert lines(trainable, 2) == ["training", "saved"]
    assert post(trainable, "stop").status == 409
    assert post(trainable, "start").status == 202
    assert lines(trainable, 3)[2:] == ["training"]
    assert state(trainable, "?log=2")["log"] == {"num_lines": 3, "lines": ["training"]}


def test_the_server_ends_what_it_started_and_waits(trainable: Guard) -> None:
    post(trainable, "start")
    lines(trainable, 1)
    runs_in(trainable).close()
    (run,) = runs_in(trainable).all
    assert run.training is not None and run.training.exit_code == 143
    assert run.log.after(0) == (2, ["training", "saved"])


def test_a_training_that_fails_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-c", "raise SystemExit('error: no data')"]
    guard = serving(RunSource("run", tmp_path / "run", tmp_path / "config.yaml", command))
    post(guard, "start")
    assert until(guard, "failed")["note"] == "exit code 1"
    assert lines(guard, 1) == ["error: no data"]


def test_a_run_that_is_held_elsewhere_is_neither_started_nor_stopped(
    trainable: Guard, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    lock = FolderLock(tmp_path / "run")
    started, stopped = post(trainable, "start"), post(trainable, "stop")
    assert (started.status, stopped.status) == (409, 409)
    assert f"in use by process {os.getpid()}" in started.error and "where it was started" in stopped.error
    lock.release()
    assert runs_in(trainable).all[0].training is None


@pytest.mark.parametrize("action", ["start", "stop"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"host": "evil.example"}, 403),
    ],
)
def test_other_pages_start_and_stop_nothing(
    trainable: Guard, action: str, headers: dict[str, str], status: int
) -> None:
    assert post(trainable, action, headers=headers).status == status
    assert call(trainable, f"/ldm/runs/0/{action}").status == 405  # a link or an image is a GET
    assert runs_in(trainable).all[0].training is None


def test_without_the_token_nothing_is_shown_or_started(folder: Path) -> None:
    closed = serving(RunSource("run", folder, folder / "config.yaml", ["false"]), token="correct-horse")
    for path in ("/ldm/runs", "/ldm/runs/0", "/ldm/runs/0/previews/2.png", "/ldm/runs/0/ledger", "/runs"):
        assert call(closed, path).status == 401
    assert post(closed, "start").status == 401 and runs_in(closed).all[0].training is None


def test_a_run_that_was_named_by_its_folder_cannot_be_started(guard: Guard) -> None:
    answer = post(guard, "start")
    assert answer.status == 400 and "--run CONFIG.yaml" in answer.error


def test_the_output_that_is_kept_is_bounded() -> None:
    log = OutputLog()
    for number in range(1000):
        log.append(str(number))
    assert log.after(0) == (1000, [str(n) for n in range(1000 - LOG_LINES, 1000)])
    assert log.after(998) == (1000, ["998", "999"]) and log.after(10**9) == (1000, [])


# Hostile


NUMBERS = ["1", "99999999999999999999", "9" * 900]
PATHS = ["", "/ledger", "/previews/2.png", "/pages/ledger"]


@pytest.mark.parametrize("number", NUMBERS, ids=len)
def test_a_run_that_does_not_exist_is_not_found(guard: Guard, number: str) -> None:
    answers = [call(guard, f"/ldm/runs/{number}{path}") for path in PATHS]
    answers += [call(guard, f"/ldm/runs/{number}/{name}", method="POST") for name in ("start", "stop")]
    assert {answer.status for answer in answers} == {404}
    assert all("\n" not in answer.error and len(answer.error) < 300 for answer in answers)


@pytest.mark.parametrize(
    "path",
    ["previews/../config.yaml", "previews/..%2f..%2fsecret.png", "previews/3.png", "previews/2", "pages/config.yaml",
     "pages/..", "pages/%00", "previews/" + "9" * 300 + ".png", "-1"],
    ids=range(9),
)  # fmt: skip
def test_no_other_file_is_reached(guard: Guard, path: str) -> None:
    assert call(guard, f"/ldm/runs/0/{path}").status == 404


def test_what_else_lies_in_the_folder_is_passed_over(guard: Guard, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes((folder / "previews" / "step-000002.png").read_bytes())
    (folder / "previews" / "step-000007.png").symlink_to(tmp_path / "secret.png")
    (folder / "previews" / "step-000008.png").write_bytes(b"<script>")
    os.mkfifo(folder / "previews" / "step-000009.png")
    for name in ("..png", "step-1.png.tmp", "step--1.png", "step-" + "9" * 40 + ".png"):
        (folder / "previews" / name).touch()
    assert [step for step, _ in state(guard)["previews"]] == [2, 4, 7, 8, 9]
    for step in (7, 8, 9):
        assert call(guard, f"/ldm/runs/0/previews/{step}.png").status == 404


@pytest.mark.parametrize("query", ["?after=x", "?after=1e9", "?log=-", "?after=" + "9" * 5000, "?log=%F0"])
def test_a_query_that_is_not_a_number_is_named(guard: Guard, query: str) -> None:
    answer = call(guard, f"/ldm/runs/0{query}")
    assert answer.status == 400 and "is not a whole number" in answer.error and len(answer.error) < 200


@pytest.mark.parametrize("line", ["{", '{"loss": 1}', "[1]", '{"step": Infinity, "loss": 1}', "\x00\xff"])
def test_a_damaged_line_is_named_and_the_rest_is_shown(guard: Guard, folder: Path, line: str) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f'{line}\n{{"step": 6, "loss": 1}}\n')
    for _ in range(2):
        found = state(guard)
        assert found["message"].endswith("line 11 is not a logged step: remove that line")
        assert found["previews"]


def test_values_that_are_not_numbers_are_passed_over(guard: Guard, folder: Path) -> None:
    odd = {"step": 6, "loss": "x", "validation_loss": None, "call_sec": [], "elapsed_sec": float("inf")}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(odd) + "\n")
    (folder / "config.yaml").write_text("num_steps: many\npreview: 3\n")
    samples = [{"loss": float("nan")}, 3, {"loss": 1, "reasons": 7, "stderr": "x"}]
    (folder / "ledger" / "ledger.json").write_text(json.dumps({"step": "x", "samples": samples}))
    found = state(guard)
    assert (found["message"], found["num_steps"], found["prompts"]) == ("", None, [])
    assert [row["loss"] for row in call(guard, "/ldm/runs/0/ledger").json["samples"]] == [1.0]
    (folder / "ledger" / "ledger.json").write_text("[")
    assert call(guard, "/ldm/runs/0/ledger").status == 400


def test_a_run_whose_folder_vanishes_is_missing(guard: Guard, folder: Path) -> None:
    assert state(guard)["step"] == 5
    folder.rename(folder.with_name("elsewhere"))
    found = state(guard)
    assert (found["state"], found["step"], found["previews"], found["pages"]) == ("missing", 0, [], [])
    assert [call(guard, f"/ldm/runs/0{path}").status for path in PATHS] == [200, 404, 404, 404]
    folder.with_name("elsewhere").rename(folder)
    assert state(guard)["step"] == 5


# The command line


def test_runs_are_named_by_folder_or_configuration(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "words.yaml"
    config.write_text(f"program: denoiser\nrun_dir: {tmp_path}/words\n")
    watched, trained = run_sources([str(folder), str(config)])
    assert (watched.name, watched.folder, watched.command) == ("run", folder, [])
    assert (trained.name, trained.folder, trained.config) == ("words", tmp_path / "words", config)
    assert trained.command == [sys.executable, "-m", "ldm", "train", str(config)]


NO_MODEL = "/no/such/model"
"""Its error comes later; without it, a server would start that should have been refused."""
BROKEN = {
    "program: [": "line 2 is not valid YAML: fix that line",
    "run_dir: a\n": "has no `program:`: write program:",
    "program: denoiser\n": "has no `run_dir:`: write run_dir: FOLDER",
    "program: denoiser\nrun_dir: 3\n": "has no `run_dir:`",
    "program: deniser\nrun_dir: a\n": "did you mean 'denoiser'?",
    "": "contains no settings",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_configuration_that_is_broken_is_named_before_anything_starts(tmp_path: Path, text: str) -> None:
    config = tmp_path / "broken.yaml"
    config.write_text(text)
    result = CliRunner().invoke(app, ["serve", NO_MODEL, "--run", str(config), "--port", "0"])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "broken.yaml" in result.stderr and BROKEN[text] in result.stderr


def test_what_cannot_be_shown_is_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused = {
        (
            "--run",
            str(folder),
            "--public",
        ): "--run with --public would let anyone train: leave one of them out",
        ("--run", str(tmp_path / "empty")): "is not the folder of a training run",
        ("--run", str(tmp_path / "nothing.yaml")): "no configuration",
        ("--run", str(folder), "--run", str(folder)): "a run is given twice",
    }
    for arguments, said in refused.items():
        result = CliRunner().invoke(app, ["serve", NO_MODEL, *arguments, "--port", "0"])
        assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1


# Whole


@pytest.mark.slow
def test_a_real_training_is_started_stopped_and_resumed(tmp_path: Path) -> None:
    data = write_squares(tmp_path / "data")
    changes = {"num_steps": 100_000, "save_every": 100_000, "preview_every": 100_000}
    config = write_config(tmp_path / "squares.yaml", AUTOENCODER, data, tmp_path / "squares", **changes)
    guard = serving(*run_sources([str(config)]))
    try:
        for start in ("not begun", "stopped"):
            assert state(guard)["state"] == start
            before = state(guard)["step"]
            assert post(guard, "start").status == 202
            end = time.monotonic() + 120
            while (found := state(guard))["step"] < before + 3:
                assert time.monotonic() < end, found
                time.sleep(0.1)
            assert found["state"] == "running" and found["steps_per_sec"] is not None
            assert post(guard, "stop").status == 202
            stopped = until(guard, "stopped", 60)
        assert stopped["step"] > before >= 3
        text = "\n".join(state(guard)["log"]["lines"])
        assert "stopped and saved at step" in text and f"resuming at step {before}" in text
    finally:
        runs_in(guard).close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs a browser: sudo apt install chromium")
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def colors(page: Browser, selector: str) -> int:
    """How many colours a canvas shows."""
    return int(
        page.run(
            f"(() => {{ const each = document.querySelector('{selector}');"
            "const data = each.getContext('2d').getImageData(0, 0, each.width, each.height).data;"
            "return new Set(new Uint32Array(data.buffer)).size; })()"
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(chromium: Browser, folder: Path, tmp_path: Path, scheme: str) -> None:
    """The chart, the previews by their slider, the ledger, start and stop; no serious finding of axe; 400 px wide."""
    page = chromium
    (tmp_path / "words.yaml").write_text(CONFIG)
    command = [sys.executable, "-S", "-c", SAVES]
    runs = Runs(
        [RunSource("run", folder), RunSource("words", tmp_path / "words", tmp_path / "words.yaml", command)]
    )
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.resize(1280, 1400)
    try:
        with listening(make_service(), runs=runs) as url:
            page.open(f"{url}/runs")
            page.wait("document.querySelectorAll('#images canvas').length === 2")
            look_at_the_run(page, folder)
            if "LDM_SCREENSHOTS" in os.environ:
                page.screenshot(Path(os.environ["LDM_SCREENSHOTS"]) / f"runs-{scheme}.png")
            axe = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
            page.run(f"{axe}; 0")
            found = page.run("axe.run().then((found) => found.violations)")
            assert [each["help"] for each in found if each["impact"] in ("serious", "critical")] == []
            for width in (320, 400):
                page.resize(width, 900)
                assert page.run("document.documentElement.scrollWidth") <= width
            page.resize(1280, 900)
            start_and_stop(page)
            assert page.errors == []
    finally:
        runs.close()
        page.call("Emulation.setEmulatedMedia", features=[])


def look_at_the_run(page: Browser, folder: Path) -> None:
    assert page.run("document.querySelectorAll('#chart path').length") == 3
    assert "best 0.2000 at step 5" in page.run("document.querySelector('#chart .best-text').textContent")
    assert "optimizer step" in page.run("document.querySelector('#chart svg').textContent")
    captions = page.run(
        "[...document.querySelectorAll('#images figcaption')].map((each) => each.textContent)"
    )
    assert captions == ["a red apple", "a cat"] and colors(page, "#images canvas") > 10
    page.run("document.querySelector('#at').focus()")
    page.press("ArrowLeft")
    page.wait("document.querySelector('#images canvas').ariaLabel.endsWith('step 2')")
    assert page.run("document.querySelectorAll('#samples tr').length") == 20
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.09}\n{"step": 6, "validation_loss": 0.05}\n')
    page.wait("document.querySelector('#chart .best-text').textContent.includes('at step 6')")
    assert page.run("document.querySelector('#shown-step').textContent") == "2"  # the slider stays


def start_and_stop(page: Browser) -> None:
    page.click("#list li:nth-child(2) button")
    page.wait("!document.querySelector('#start').hidden")
    page.click("#start")
    page.wait("document.querySelector('#log').textContent.includes('training')")
    page.wait("!document.querySelector('#stop').hidden")
    page.click("#stop")
    page.wait("document.querySelector('#log').textContent.includes('saved')")
    page.wait("!document.querySelector('#start').hidden")
