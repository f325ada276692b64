"""The report on a stream: it grows shard by shard, drops nothing silently, and ends the run on too many bad samples."""

import json
from pathlib import Path
from typing import Any

import pytest

from ldm.data.report.stream_report import StreamReport
from ldm.data.stream_shards import OpenShard, Shard, list_shards
from ldm.errors import UserError
from tests.support.tiny_streams import data_settings, first, make_stream, opener, write_parquet, write_shards


def make_report(
    folder: Path, num_shards: int = 4, max_bad_fraction: float = 0.05, **options: Any
) -> StreamReport:
    folder.mkdir(exist_ok=True)
    return StreamReport(folder, num_shards, max_bad_fraction, **options)


def read(folder: Path) -> Any:
    return json.loads((folder / "data_report.json").read_text())


def shards_of(folder: Path) -> list[Shard]:
    return list_shards(data_settings(folder).all_sources())


def test_the_report_grows_shard_by_shard(tmp_path: Path) -> None:
    write_shards(tmp_path / "data")
    report = make_report(tmp_path / "run")
    known: list[Any] = []

    def reached(found: OpenShard) -> None:
        report.add(found)
        known.append(read(tmp_path / "run"))

    stream = make_stream(tmp_path / "data", reached=reached)
    first(stream, 10)  # more than an epoch: a shard that is opened again is counted once
    assert [seen["num_shards_seen"] for seen in known[:5]] == [1, 2, 3, 4, 4]
    assert known[-1]["num_found"] == known[-1]["num_used"] == 17
    assert sum(known[-1]["buckets"].values()) == 17 and len(known[-1]["buckets"]) == 2
    for row in known[-1]["shards"]:
        outcomes = json.loads((tmp_path / "run" / row["report"]).read_text())["samples"]
        assert len(outcomes) == row["num_found"] and all(
            outcome["used"] and outcome["bucket"] for outcome in outcomes
        )


def test_a_bad_sample_is_refused_by_name_and_the_others_are_used(tmp_path: Path) -> None:
    write_shards(tmp_path / "data")
    write_parquet(tmp_path / "data/0.parquet", range(7), bad=[3])
    report = make_report(tmp_path / "run", max_bad_fraction=0.1)
    first(make_stream(tmp_path / "data", reached=report.add), 8)
    found = read(tmp_path / "run")
    assert (found["num_found"], found["num_used"], found["num_refused"]) == (17, 16, 1)
    row = next(row for row in found["shards"] if row["num_refused"])
    assert "0.parquet row 3" in row["reasons"][0]
    outcomes = json.loads((tmp_path / "run" / row["report"]).read_text())["samples"]
    assert [outcome["sample_id"] for outcome in outcomes if not outcome["used"]] == ["0.parquet/3"]


def test_too_many_bad_samples_end_the_run_once_a_hundred_were_seen(tmp_path: Path) -> None:
    for number, bad in enumerate((6, 0, 0)):
        start = 60 * number
        write_parquet(tmp_path / f"{number}.parquet", range(start, start + 60), bad=range(start, start + bad))
    shards, opening = shards_of(tmp_path), opener(data_settings(tmp_path))
    report = make_report(tmp_path / "run", 3, 0.04)
    report.add(opening(shards[0]))  # a tenth, but only of sixty samples
    with pytest.raises(UserError, match=r"6 of the 120 samples seen so far are bad.*0\.parquet row 0"):
        report.add(opening(shards[1]))
    assert read(tmp_path / "run")["num_refused"] == 6  # the report is written before the run ends
    enough = make_report(tmp_path / "other", 3, 0.05)
    for shard in shards:
        enough.add(opening(shard))


def test_once_all_shards_are_seen_fewer_are_enough(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", range(4), bad=[0])
    found = opener(data_settings(tmp_path))(shards_of(tmp_path)[0])
    with pytest.raises(UserError, match="1 of the 4 samples seen so far"):
        make_report(tmp_path / "run", 1).add(found)


def test_a_changed_shard_is_noticed_when_it_is_opened_again(tmp_path: Path) -> None:
    write_shards(tmp_path / "data")
    shards, opening = shards_of(tmp_path / "data"), opener(data_settings(tmp_path / "data"))
    report = make_report(tmp_path / "run")
    report.add(opening(shards[0]))
    report.add(opening(shards[0]))
    write_parquet(tmp_path / "data/0.parquet", range(1, 8))
    with pytest.raises(UserError, match=r"0\.parquet has changed"):
        report.add(opening(shards[0]))
    with pytest.raises(UserError, match=r"0\.parquet has changed"):
        make_report(tmp_path / "run", resumed=True).add(opening(shards[0]))


def test_a_resumed_run_counts_what_it_saw_before(tmp_path: Path) -> None:
    shards = shards_of(write_shards(tmp_path / "data"))
    opening = opener(data_settings(tmp_path / "data"))
    make_report(tmp_path / "run").add(opening(shards[0]))
    resumed = make_report(tmp_path / "run", resumed=True)
    resumed.add(opening(shards[2]))
    assert read(tmp_path / "run")["num_found"] == 7 + 5
    make_report(tmp_path / "run").add(opening(shards[1]))  # a new run does not
    assert read(tmp_path / "run")["num_found"] == 1
    assert [path.name for path in (tmp_path / "run/data_report").iterdir()] == ["shard-00001.json"]


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    shards = shards_of(write_shards(tmp_path / "data"))
    report = make_report(tmp_path / "run", main=False)
    report.add(opener(data_settings(tmp_path / "data"))(shards[0]))
    assert report.summary()["num_found"] == 7 and not list((tmp_path / "run").iterdir())


def test_in_the_folder_of_reports_only_its_own_files_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run/data_report"
    folder.mkdir(parents=True)
    foreign = {"shard-00007.json": "x", "shard-00008.json": "{}", "shard-old.json": "x", "notes.txt": "x"}
    for name, text in foreign.items():
        (folder / name).write_text(text)
    make_report(tmp_path / "run")
    assert {path.name: path.read_text() for path in folder.iterdir()} == foreign
