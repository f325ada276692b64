"""scripts/benchmark: statistics, turns, table and chart, and the smallest version of each benchmark (slow)."""

import os
import re
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.benchmark_folder import ROOT, benchmark
from tests.support.benchmark_sides import fail, make_counting, make_two, say_threads

samples, workers, rows, watch = map(benchmark, ("samples", "workers", "rows", "watch"))
suite, chart, models = map(benchmark, ("suite", "chart", "models"))


def made_up(*walls: float, foreign: float = 0.0) -> list[Any]:
    return [samples.Sample(wall, wall, foreign) for wall in walls]


# Statistics


def test_a_ratio_is_of_the_medians_of_clean_samples() -> None:
    ours = made_up(1, 2, 3, 2, 2) + made_up(100, 100, 100, foreign=0.25)
    theirs = made_up(6, 6, 5, 7, 60) + made_up(0.1, foreign=1.0)
    assert samples.ratio_of(ours, theirs) == 3.0
    assert samples.num_clean(ours) == 5


@pytest.mark.parametrize("side", [0, 1])
def test_fewer_than_five_clean_samples_give_no_verdict(side: int) -> None:
    few = made_up(1, 1, 1, 1) + made_up(1, 1, foreign=0.3)
    sides = [few, made_up(1, 1, 1, 1, 1)]
    assert samples.ratio_of(sides[side], sides[1 - side]) is None


def test_a_detail_has_a_median_too() -> None:
    found = [samples.Sample(1, 1, 0, {"unet_sec": value}) for value in (1, 2, 3, 4, 5)]
    assert samples.clean_median(found, "unet_sec") == 3
    assert samples.clean_median(found, "other") is None


def test_a_stopwatch_counts_other_programs_as_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter([100.0, 107.0])
    own = iter([10.0, 12.0])
    wall = iter([0.0, 0.0, 4.0, 4.0])
    monkeypatch.setattr(samples, "busy_cpu_sec", lambda: next(busy))
    monkeypatch.setattr(samples.time, "process_time", lambda: next(own))
    monkeypatch.setattr(samples.time, "perf_counter", lambda: next(wall))
    sample = samples.Stopwatch().sample(times=2)
    assert (sample.wall_sec, sample.own_cpu_sec) == (2.0, 1.0)
    assert sample.foreign_cores == pytest.approx((7 - 2) / 4)
    assert not sample.clean


def test_the_machine_counts_its_work() -> None:
    before = samples.busy_cpu_sec()
    start = time.process_time()
    while time.process_time() < start + 0.1:
        pass
    assert samples.busy_cpu_sec() > before
    assert samples.matmul_gflops(size=64, repeats=1) > 0


def test_calls_are_recorded_from_outside() -> None:
    class Network:
        def forward(self, x: int, *, y: int) -> int:
            return x + y

    calls = watch.Calls(Network, "forward")
    assert [Network().forward(1, y=2), Network().forward(3, y=4)] == [3, 7]
    assert calls.inside_sec() > 0
    assert calls.between_sec() > 0
    calls.clear()
    assert calls.between_sec() is None


# Turns


def test_sides_take_turns_in_separate_processes() -> None:
    sides = {name: workers.repeated(make_counting, start) for name, start in (("a", 0), ("b", 1000))}
    taken = workers.take_turns(sides, rounds=2, num_warm_ups=1)
    (a, a_process), (b, b_process) = taken["a"].output, taken["b"].output
    assert (a, b) == (101, 1101)  # of the first turn that counts
    assert len({a_process, b_process, os.getpid()}) == 3
    for one in taken.values():
        assert [sample.details for sample in one.samples] == [{"detail_sec": 0.5}] * 2
        assert one.ready_sec > one.warm_up_sec > 0
        assert 5 < one.peak_memory_mb < 5000


def test_one_process_can_alternate_between_several_works() -> None:
    several = partial(workers.repeat_several, make_two)
    taken = workers.take_turns({"both": workers.Side(several, works=("once", "twice"))}, rounds=2)
    assert set(taken) == {"once", "twice"}
    (once, process), (twice, same_process) = taken["once"].output, taken["twice"].output
    assert (once, twice) == (101, 1101)
    assert process == same_process != os.getpid()
    assert [len(one.samples) for one in taken.values()] == [2, 2]
    assert taken["once"].ready_sec == taken["twice"].ready_sec > 0


def test_the_output_of_a_failed_side_is_shown() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)no such model.*in its first turn"):
        workers.take_turns({"bad": fail}, rounds=1)


def test_processes_of_one_side_share_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    environments = tuple({"OMP_NUM_THREADS": "3", "RANK": str(rank)} for rank in (5, 6))
    taken = workers.take_turns({"two": workers.Side(say_threads, environments)}, rounds=1, num_warm_ups=0)
    assert taken["two"].output.tolist() == [3, 5]
    assert len(taken["two"].samples) == 1
    assert "RANK" not in os.environ


def test_a_sides_own_processes_are_not_foreign() -> None:
    first, second = samples.Sample(2.0, 1.0, 0.8), samples.Sample(1.0, 1.5, 1.0)
    joined = workers._joined([first, second])
    assert (joined.wall_sec, joined.own_cpu_sec) == (2.0, 2.5)
    assert joined.foreign_cores == pytest.approx(0.8 - 1.5 / 2)


# Rows, table, chart


def taken(walls: list[float], output: Any = None, **more: Any) -> Any:
    return workers.Taken(samples=made_up(*walls), output=output, **more)


def test_a_row_has_the_numbers_behind_its_ratio() -> None:
    theirs = taken([4] * 6, np.array([0.0, 2.0]), peak_memory_mb=200.0)
    ours = taken([2] * 5, np.array([0.0, 2.5]), peak_memory_mb=100.0)
    row = rows.row_of("case", {"ldm": ours, "diffusers": theirs}, "ldm", "diffusers", 1.5)
    assert (row.ratio, row.goal, row.num_clean, row.num_samples) == (2.0, 1.5, (5, 6), 5)
    assert row.largest_difference == pytest.approx(0.5)
    assert row.peak_memory_mb == (100.0, 200.0)


def test_outputs_that_cannot_be_compared() -> None:
    fine = np.array([0.0, 2.0])
    assert rows.largest_difference(None, fine) is None
    assert rows.largest_difference(np.array([0.0, np.nan]), fine) == float("inf")
    assert rows.largest_difference(np.zeros(3), fine) == float("inf")


RESULT = rows.result_of(
    "made up",
    [
        rows.Row("a case", "ldm", "diffusers", 1.62, 1.6, (5, 6), 6, 2e-5, (1234.5, 2000.0)),
        rows.Row("a case", "ldm fast", "diffusers", 2.0, 3.5, (5, 6), 6),
        rows.Row("a case", "ldm slow", "diffusers", None, 1.0, (4, 6), 6),
    ],
)


def test_the_table_says_what_was_reached() -> None:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rows.table([RESULT]).splitlines()]
    assert lines[0] == list(rows.COLUMNS)
    assert lines[2][3:] == ["1.62", "1.6, reached", "5 and 6 of 6", "2.0e-05 std", "1,234 MB (2,000)"]
    assert lines[3][3:5] == ["2.00", "3.5, missed"]
    assert lines[4][3:6] == ["no verdict", "1", "4 and 6 of 6"]


def test_a_row_of_two_machines_shows_the_range_and_reaches_the_goal_on_the_slower_one() -> None:
    second = rows.Row("a case", "ldm", "diffusers", 1.41, 1.6, (6, 6), 6, 3e-5, (1300.0, 2100.0))
    fast = rows.Row("a case", "ldm fast", "diffusers", None, 3.5, (1, 6), 6)
    both = rows.table([RESULT, rows.result_of("made up", [second, fast])])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in both.splitlines()]
    assert len(lines) == 2 + 3
    assert lines[2][3:5] == ["1.41 to 1.62", "1.6, missed"]
    assert lines[2][5:] == ["5 and 6 of 6; 6 and 6 of 6", "3.0e-05 std", "1,300 MB (2,100)"]
    assert lines[3][3:5] == ["2.00", "3.5"]


def test_results_are_kept_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "BENCHMARKS", ("startup", "decode"))
    for name in suite.BENCHMARKS:
        made = {**RESULT, "rows": [{**row, "case": name} for row in RESULT["rows"]]}
        monkeypatch.setattr(benchmark(name), name, lambda setting, made=made: made)
    said = suite.measure("all", samples.Setting(rounds=1), tmp_path / "all.json")
    assert said.count("ldm fast") == 2
    (tmp_path / "old.json").write_text('{"benchmark": "startup", "samples": {}}')
    found = suite.read_results([tmp_path / "all.json", tmp_path / "old.json"])
    assert len(found) == 2
    assert chart.draw(found, tmp_path / "chart.png") in said
    with Image.open(tmp_path / "chart.png") as picture:
        assert len(picture.convert("RGB").getcolors(1_000_000) or []) > 10


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no row has a verdict"):
        chart.draw([{"rows": []}], tmp_path / "chart.png")
    assert not (tmp_path / "chart.png").exists()


def test_the_same_images_are_made_each_time(tmp_path: Path) -> None:
    one, two = (models.make_dataset(tmp_path / name, 2, 16) for name in "ab")
    assert sorted(path.name for path in one.iterdir()) == ["000.png", "001.png", "metadata.jsonl"]
    assert all((one / path.name).read_bytes() == path.read_bytes() for path in two.iterdir())


def test_a_larger_model_s_step_is_computed_from_its_parts() -> None:
    train = benchmark("train")
    case = train.Case("case", models.MEDIUM, 256, batch_size=4, num_images=8)
    operations = models.call_flops(models.SD15, 256) / models.call_flops(models.MEDIUM, 256)
    weights = models.num_weights(models.SD15, 256) / models.num_weights(models.MEDIUM, 256)
    assert models.num_weights(models.SD15, 256) == 859_520_964  # as published
    assert 8 < operations < 20 < weights < 30

    def side(whole: float, passes: float, upkeep: float) -> Any:
        details = {"forward_backward_sec": passes, "upkeep_sec": upkeep}
        return workers.Taken(samples=[samples.Sample(whole, whole, 0.0, details)] * 5)

    assert train.larger_step_sec(side(6.0, 1.0, 2.0), case) == pytest.approx(operations + 2 * weights + 3)
    ratio = train.larger_ratio(side(1.0, 1.0, 0.0), side(9.0, 1.0, 0.0), case)
    assert ratio == pytest.approx((operations + 8) / operations)
    assert train.larger_ratio(side(1.0, 1.0, 0.0), taken([1] * 5), case) is None


def test_when_a_cache_pays_off() -> None:
    train = benchmark("train")
    case = train.Case("case", train.SMALLEST, 64, batch_size=2, num_images=8)
    repaid = partial(train.epochs_until_repaid, fill_sec=6.0, case=case)
    assert repaid(taken([1] * 5), taken([2.5] * 5)) == 1.0  # 4 steps per epoch, each saving 1.5 s
    assert repaid(taken([1] * 4), taken([2.5] * 5)) is None
    assert repaid(taken([2] * 5), taken([1] * 5)) is None


# Each benchmark, once


def test_what_is_used_of_the_training_programs_is_there() -> None:
    """The benchmarks import it by name when they run, which only slow tests do."""
    used = {
        found
        for path in (ROOT / "scripts" / "benchmark").glob("*.py")
        for found in re.findall(r'training\("([\w.]+)"\)\.(\w+)', path.read_text("utf-8"))
    }
    assert len(used) >= 4
    assert [each for each in used if not hasattr(import_module(f"train.{each[0]}"), each[1])] == []


def test_one_case_and_one_side_can_be_chosen() -> None:
    setting = samples.Setting(scale="quick", case="SD1.5", side="ldm fast preset", num_steps=20)
    (case,) = benchmark("image_cases").cases_of(setting)
    assert (case.title, case.sides) == ("SD1.5-size UNet, 256 px, 20 steps", ("ldm fast preset",))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--case", "SD9"], "error: no case has 'SD9' in its name"),
        (["--side", "fast"], "and the side 'fast': embedded model: diffusers, tuned, ldm,"),
        (["--steps", "0"], "error: --steps 0: give 1 or more"),
    ],
)
def test_what_no_case_has_is_refused(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark("command").main(["generate", "--quick", *given]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) <= 2  # the first names the benchmark


def test_the_peak_of_a_data_check_is_its_own(tmp_path: Path) -> None:
    """Not that of the process that starts it, which has torch."""
    found = benchmark("data_check")._checks(tmp_path, 3)
    assert 20e6 < found["peak_bytes"] < benchmark("workers").peak_memory_mb("cpu") * 1e6
    assert found["first_cpu_sec"] > 0


@pytest.mark.slow
@pytest.mark.openvino
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", suite.BENCHMARKS)
def test_a_benchmark_runs(name: str) -> None:
    setting = samples.Setting(rounds=1, scale="smallest")
    result = getattr(benchmark(name), name)(setting)
    assert result["benchmark"] == name
    assert result["rows"]
    for row in result["rows"]:
        assert row["ratio"] is None  # of one sample
        assert row["num_samples"] == 1
        if row["side"] in ("ldm", "ldm openvino", "diffusers, tuned"):
            assert row["largest_difference"] < 1e-3
