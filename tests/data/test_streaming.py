"""Streaming: a pure order, every sample once per epoch, exact positions, and no shard read before it is needed."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ldm.data.batches import LatentSamples, make_loader
from ldm.data.captions import CaptionSettings
from ldm.data.sources.reading import SourceSettings, read_sources
from ldm.data.stream_shards import list_shards, read_shard
from ldm.data.streaming import START, Position, StreamedSamples, StreamOrder, shard_order
from ldm.errors import UserError
from tests.support.tiny_sources import parquet
from tests.support.tiny_streams import (
    data_settings,
    first,
    ids,
    make_stream,
    one_epoch,
    opener,
    picture,
    write_parquet,
    write_shards,
    write_tar,
)

NUM_BATCHES = 18
"""More than two epochs of `write_shards`."""

OPENED: list[str] = []
_watching = False


def _note(event: str, args: Any) -> None:
    if _watching and event == "open" and isinstance(args[0], str | Path):
        OPENED.append(Path(args[0]).name)


sys.addaudithook(_note)


@pytest.fixture
def opened() -> Any:
    """The names of the files that Python opens during a test."""
    global _watching
    OPENED.clear()
    _watching = True
    yield OPENED
    _watching = False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def test_every_sample_is_seen_once_per_epoch_in_batches_of_one_size(folder: Path) -> None:
    every = {sample.sample_id for sample in read_sources([SourceSettings(path=str(folder))]).samples}
    assert len(every) == 17
    for epoch in (0, 1):
        batches = one_epoch(make_stream(folder), epoch)
        assert sorted(name for batch in batches for name in batch) == sorted(every)
        assert len(batches) == 8 and all(
            len({name.split("/")[0] for name in batch}) == 1 for batch in batches
        )
    for _, turns in first(make_stream(folder), NUM_BATCHES):
        assert len({turn.placed.size for turn in turns}) == 1


def test_the_order_is_a_function_of_seed_and_epoch(folder: Path) -> None:
    stream = make_stream(folder)
    assert one_epoch(stream) == one_epoch(make_stream(folder))
    assert one_epoch(stream) != one_epoch(make_stream(folder, seed=1))
    assert one_epoch(stream) != one_epoch(stream, 1)
    orders = {tuple(shard_order(4, seed=0, epoch=epoch)) for epoch in range(8)}
    assert len(orders) > 4
    # the samples inside a shard are shuffled too
    insides = [[n for batch in one_epoch(stream, epoch) for n in batch if n[0] == "0"] for epoch in range(3)]
    assert insides[0] != insides[1] != insides[2]


def test_the_order_does_not_depend_on_where_the_data_is(folder: Path, tmp_path: Path) -> None:
    assert one_epoch(make_stream(write_shards(tmp_path / "elsewhere"))) == one_epoch(make_stream(folder))


@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_share_each_global_batch(folder: Path, num_processes: int) -> None:
    ranks = [make_stream(folder, rank=rank, num_processes=num_processes) for rank in range(num_processes)]
    shares = [first(stream, NUM_BATCHES) for stream in ranks]
    for number, (position, turns) in enumerate(first(make_stream(folder), NUM_BATCHES)):
        parts = [share[number] for share in shares]
        assert {part[0] for part in parts} == {position}
        for rank, (_, part) in enumerate(parts):
            mine = [turn for turn in part if turn.weight]
            assert mine == turns[rank::num_processes]
            assert part  # a rank without samples gets one of weight zero


def test_processes_share_the_decoding_of_a_shard(folder: Path) -> None:
    settings = data_settings(folder)
    shard = list_shards(settings.all_sources())[0]
    shares: list[list[Any]] = []

    def collect(mine: list[Any]) -> list[Any]:
        shares.append(mine)
        return [fact for share in shares for fact in share]

    with pytest.raises(KeyError):  # the first process has only its half
        opener(settings, rank=0, num_processes=2, gather=collect)(shard)
    assert opener(settings, rank=1, num_processes=2, gather=collect)(shard) == opener(settings)(shard)
    assert [len(share) for share in shares] == [4, 3]


def test_a_run_resumes_from_any_position(folder: Path) -> None:
    unbroken = first(make_stream(folder), NUM_BATCHES)
    for number, (position, _) in enumerate(unbroken):
        rest = first(make_stream(folder), NUM_BATCHES - number - 1, position)
        assert rest == unbroken[number + 1 :]


def test_a_tar_is_opened_when_it_is_needed(tmp_path: Path, opened: list[str]) -> None:
    for number in range(5):
        write_tar(tmp_path / f"{number}.tar", range(4 * number, 4 * number + 4))
    opened.clear()
    stream = make_stream(tmp_path)
    batches = stream.batches()
    assert opened == []
    order = shard_order(5, seed=0, epoch=0)
    next(batches)
    assert set(opened) == {f"{order[0]}.tar"}
    for _, turns in batches:
        if ids(turns)[0].startswith(f"{order[1]}.tar"):
            break
    assert set(opened) == {f"{order[0]}.tar", f"{order[1]}.tar"}


def test_a_resumed_run_opens_its_current_shard_and_none_before(tmp_path: Path, opened: list[str]) -> None:
    for number in range(5):
        write_tar(tmp_path / f"{number}.tar", range(4 * number, 4 * number + 4))
    opened.clear()
    first(make_stream(tmp_path), 1, Position(0, 3))
    assert set(opened) == {f"{shard_order(5, seed=0, epoch=0)[3]}.tar"}


def test_a_damaged_parquet_file_is_reported_when_it_is_needed(tmp_path: Path) -> None:
    write_shards(tmp_path)
    last = shard_order(4, seed=0, epoch=0)[-1]
    (tmp_path / f"{last}.parquet").write_bytes(b"no parquet")
    batches = make_stream(tmp_path).batches()
    with pytest.raises(UserError, match=f"{last}.parquet: not a readable Parquet file"):
        for position, _ in batches:
            reached = position.shard
    assert reached == 2


def test_a_shard_that_changed_is_noticed_on_resuming_inside_it(tmp_path: Path) -> None:
    write_shards(tmp_path)
    position, turns = first(make_stream(tmp_path), 1)[0]
    shard = tmp_path / ids(turns)[0].split("/")[0]
    write_parquet(shard, range(40, 46))
    with pytest.raises(UserError, match=f"{shard.name} has changed since this run first read it"):
        first(make_stream(tmp_path), 1, position)
    first(make_stream(tmp_path), 1, START)  # a new run accepts it


def test_shards_other_than_those_of_the_run_are_refused(tmp_path: Path) -> None:
    stream = make_stream(write_shards(tmp_path))
    order = StreamOrder(stream, 0, 5, {})
    assert len(list(order)) == 5
    saved = order.state_after(3)
    (tmp_path / "3.parquet").rename(tmp_path / "4.parquet")
    with pytest.raises(UserError, match="the 4 shards are not the ones"):
        StreamOrder(make_stream(tmp_path), 3, 5, saved)


def test_no_usable_sample_ends_the_run(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", range(3), bad=range(3))
    with pytest.raises(UserError, match="no sample of any shard can be used"):
        first(make_stream(tmp_path), 1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_saved_position_is_that_of_the_step_however_far_the_loader_is_ahead(
    folder: Path, num_workers: int
) -> None:
    like = LatentSamples([], lambda *_: torch.zeros(0), "", 0, CaptionSettings(), 4, 4)
    unbroken = first(make_stream(folder), NUM_BATCHES)
    order = StreamOrder(make_stream(folder), 0, NUM_BATCHES, {})
    for step, batch in enumerate(make_loader(StreamedSamples(like), order, num_workers)):
        position, turns = unbroken[step]
        assert batch["sample_id"] == ids(turns)
        assert batch["pixel_values"].shape == (len(turns), 3, *turns[0].placed.size)
        saved = order.state_after(step + 1)
        assert {name: saved[name] for name in Position._fields} == position._asdict()
    resumed = StreamOrder(
        make_stream(folder), 5, NUM_BATCHES, {**unbroken[4][0]._asdict(), "shards": saved["shards"]}
    )
    assert [ids(turns) for turns in resumed] == [ids(turns) for _, turns in unbroken[5:]]


def test_the_samples_are_the_same_as_without_streaming(folder: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "deep/er")
    parquet(tmp_path / "deep/0.parquet", {"image": [picture(0), None, picture(1)], "text": ["a", "b", "c"]})
    write_tar(tmp_path / "more.tar", [30, 31])
    sources = [
        {"path": str(tmp_path / "deep"), "loss_weight": 0.5, "alpha_mask": True},
        {"path": str(tmp_path / "more.tar"), "repeats": 2},
    ]
    for some in (sources, sources[:1], sources[1:]):
        settings = data_settings(folder, path=None, sources=some)
        readings = [read_shard(shard) for shard in list_shards(settings.all_sources())]
        whole = read_sources(settings.all_sources())
        streamed = [sample for reading in readings for sample in reading.samples]
        assert streamed == whole.samples
        assert [refusal for reading in readings for refusal in reading.refusals] == whole.refusals


def test_what_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="kind folder has no shards"):
        list_shards([SourceSettings(path=str(tmp_path))])
    with pytest.raises(ValidationError, match="set holdout_fraction=0"):
        data_settings(tmp_path, holdout_fraction=0.1)
    with pytest.raises(ValidationError, match="use alpha_mask"):
        data_settings(tmp_path, path=None, sources=[{"path": "x", "masks": "y"}])


def test_with_an_index_a_shard_is_not_decoded_again(folder: Path, tmp_path: Path) -> None:
    settings = data_settings(folder)
    shard = list_shards(settings.all_sources())[0]
    found = opener(settings, image_index=tmp_path)(shard)
    assert len(list((tmp_path / "streams").iterdir())) == 1
    assert opener(settings, image_index=tmp_path)(shard) == found == opener(settings)(shard)
