"""Pruning by age and by size, oldest first; dry runs; files of others are never removed."""

import os
import time
from pathlib import Path

import pytest

from ldm.data.cache.cache_folder import mark_used
from ldm.data.cache.moments import MomentsCache
from ldm.data.cache.prune import prune
from ldm.data.image_index import ImageIndex
from ldm.data.sample import ImageInfo
from ldm.errors import UserError
from tests.support.tiny_cache import MODEL, filled, key_of, shards

DAY_SEC = 24 * 3600


def age(path: Path, days: float) -> None:
    os.utime(path, (time.time() - days * DAY_SEC,) * 2)


def old_shards(folder: Path, *days: float) -> list[Path]:
    """One shard for each age in days."""
    made: list[Path] = []
    for number in range(len(days)):
        filled(folder, [f"image {number}"])
        (new,) = set(shards(folder)) - set(made)
        made.append(new)
    for path, day in zip(made, days, strict=True):
        age(path, day)
    return made


def test_entries_unused_for_long_are_removed(tmp_path: Path) -> None:
    new, older, oldest = old_shards(tmp_path, 1, 20, 40)
    assert prune(tmp_path, older_than_days=60).removed == ()
    would = prune(tmp_path, older_than_days=10, dry_run=True)
    assert shards(tmp_path) == sorted([new, older, oldest])
    done = prune(tmp_path, older_than_days=10)
    assert [file.path for file in done.removed] == [file.path for file in would.removed] == [oldest, older]
    assert [round(file.unused_days) for file in done.removed] == [40, 20]
    assert shards(tmp_path) == [new] and done.kept_bytes == new.stat().st_size
    assert MomentsCache(tmp_path, MODEL).missing(map(key_of, ["image 0", "image 1"])) == [key_of("image 1")]


def test_above_a_size_the_oldest_are_removed_first(tmp_path: Path) -> None:
    made = old_shards(tmp_path, 3, 1, 2)
    size = made[0].stat().st_size
    assert [f.path for f in prune(tmp_path, max_bytes=2 * size, dry_run=True).removed] == [made[0]]
    assert [f.path for f in prune(tmp_path, max_bytes=2 * size - 1).removed] == [made[0], made[2]]
    assert prune(tmp_path, max_bytes=size).removed == ()
    assert prune(tmp_path, max_bytes=0).kept_bytes == 0 and not shards(tmp_path)


def test_reading_a_shard_keeps_it(tmp_path: Path) -> None:
    used, unused = old_shards(tmp_path, 40, 40)
    today = time.time()
    MomentsCache(tmp_path, MODEL).read(key_of("image 0"))
    assert used.stat().st_mtime > today - 60
    age(used, 0.5)
    before = used.stat().st_mtime
    MomentsCache(tmp_path, MODEL).read(key_of("image 0"))
    assert used.stat().st_mtime == before  # the time is set at most once a day
    assert [file.path for file in prune(tmp_path, older_than_days=30).removed] == [unused]


def left_by_killed_writers(folder: Path) -> list[Path]:
    """Temporary files of a shard and of the image index, as a killed process leaves them."""
    image_index = ImageIndex(folder)
    image_index.put(("/data/a.png", 1, 1_000_000_000), ImageInfo("0" * 64, 3, 4, 5, ()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldm.io.files.os.fsync", lambda handle: 1 / 0)
        patch.setattr(Path, "unlink", lambda path, missing_ok: None)  # a killed process removes nothing
        for write in (lambda: filled(folder, ["another image"]), image_index.save):
            with pytest.raises(ZeroDivisionError):
                write()
    left = sorted(folder.rglob(".tmp-*"))
    assert [path.relative_to(folder).parts[0] for path in left] == ["facts", "moments"]
    return left


def test_only_what_the_cache_wrote_is_removed(tmp_path: Path) -> None:
    (shard,) = old_shards(tmp_path, 40)
    litter = [shard.with_name(shard.name + ".damaged"), *left_by_killed_writers(tmp_path)]
    outside = tmp_path.parent / "outside.safetensors"
    outside.write_bytes(b"x")
    foreign = [
        tmp_path / shard.name,
        tmp_path / "photo.jpg",
        shard.with_name("my.safetensors"),
        shard.with_name("my.safetensors.damaged"),
        shard.with_name(shard.name + ".bak"),
        shard.with_name(shard.name.replace("moments", "prompts")),
        tmp_path / "moments" / "mine" / shard.name,
        tmp_path / "other" / MODEL / shard.name,
        tmp_path / "facts" / "notes.jsonl",
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        age(path, 400)
    link = shard.with_name(f"moments-{'0' * 32}.safetensors")
    link.symlink_to(outside)
    litter[0].write_bytes(b"x")
    assert prune(tmp_path).removed == ()  # a process may still be writing it
    for path in litter:
        age(path, 2)
    removed = prune(tmp_path, max_bytes=0).removed
    assert {file.path for file in removed} == {shard, *litter}
    assert all(path.exists() for path in [*foreign, link, outside]) and not shard.exists()


def converted(folder: Path, name: str, days: float) -> Path:
    """A converted network in the cache, unused for some days."""
    place = folder / "openvino" / name
    (place / "full").mkdir(parents=True)
    for file in ("full/openvino_model.bin", "comparison.json"):
        (place / file).write_bytes(b"x" * 100)
    for path in (place / "comparison.json", place):
        age(path, days)
    return place


def test_converted_networks_are_removed_as_a_whole_by_their_last_use(tmp_path: Path) -> None:
    (shard,) = old_shards(tmp_path, 20)
    weights = "a" * 64
    new, old = (converted(tmp_path, f"{weights}-1-2026.{n}.0-1", days) for n, days in ((1, 40), (2, 40)))
    mine = converted(tmp_path, "my-network", 400)
    half = converted(tmp_path, f".tmp-{weights}-1-2026.4.0-01234567", 2)
    mark_used(new)
    removed = prune(tmp_path, older_than_days=30).removed
    assert [(file.path, file.size_bytes) for file in removed] == [(half, 200), (old, 200)]
    assert shard.exists() and new.is_dir() and mine.is_dir()
    assert not half.exists() and not old.exists()
    assert prune(tmp_path, max_bytes=200).kept_bytes == 200
    assert not shard.exists() and new.is_dir()


def test_no_cache_and_wrong_limits(tmp_path: Path) -> None:
    assert prune(tmp_path / "none", older_than_days=0, max_bytes=0).removed == ()
    with pytest.raises(UserError, match="older_than_days = -1"):
        prune(tmp_path, older_than_days=-1)
