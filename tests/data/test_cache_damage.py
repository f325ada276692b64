"""Damage in the cache is reported by shard and key, and encoded again; valid entries are kept."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldm.data.cache import shards as cache_shards
from ldm.data.cache.moments import MomentsCache
from ldm.errors import UserError
from tests.support.tiny_cache import MODEL, Encoder, filled, flip_byte, items, key_of, offset_of, shards

NAMES = [f"image {index}" for index in range(5)]


def watched(folder: Path) -> tuple[MomentsCache, list[str]]:
    said: list[str] = []
    return MomentsCache(folder, MODEL, on_damage=said.append), said


def test_a_flipped_byte_is_named_and_only_its_entry_is_encoded_again(tmp_path: Path) -> None:
    before = filled(tmp_path, NAMES)
    (path,) = shards(tmp_path)
    good = {name: before.read(key_of(name)) for name in NAMES}
    flip_byte(path, offset_of(path, key_of(NAMES[2])) + 5)
    cache, said = watched(tmp_path)
    encoder = Encoder()
    done = cache.fill(items(NAMES), encoder, batch_size=2)
    assert said == [f"{path}: entry {key_of(NAMES[2])} is damaged"]
    assert (done.num_found, done.num_encoded) == (4, 1)
    for reader in (cache, MomentsCache(tmp_path, MODEL)):
        assert all(torch.equal(reader.read(key_of(name)), good[name]) for name in NAMES)
    assert [p.name for p in path.parent.glob("*.damaged")] == [path.name + ".damaged"]
    assert watched(tmp_path)[0].missing(map(key_of, NAMES)) == []


def test_damage_is_reported_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, NAMES)
    (path,) = shards(tmp_path)
    flip_byte(path, offset_of(path, key_of(NAMES[0])))
    assert MomentsCache(tmp_path, MODEL).missing(map(key_of, NAMES)) == [key_of(NAMES[0])]
    assert capsys.readouterr().err == f"warning: {path}: entry {key_of(NAMES[0])} is damaged\n"


def test_damage_found_in_training_is_an_error_and_never_a_wrong_latent(tmp_path: Path) -> None:
    filled(tmp_path, NAMES)
    (path,) = shards(tmp_path)
    flip_byte(path, offset_of(path, key_of(NAMES[4])))
    cache, said = watched(tmp_path)
    assert torch.isfinite(cache.read(key_of(NAMES[0]))).all()
    with pytest.raises(UserError, match=f"{key_of(NAMES[4])} is not in the cache .* run again"):
        cache.read(key_of(NAMES[4]))
    assert len(said) == 1


def test_another_shard_replaces_a_damaged_one(tmp_path: Path) -> None:
    first = filled(tmp_path, NAMES)
    (path,) = shards(tmp_path)
    good = {key_of(name): {"moments": first.read(key_of(name))} for name in NAMES}
    first.store.write(good)
    for path in shards(tmp_path)[:1]:
        flip_byte(path, offset_of(path, key_of(NAMES[1])))
    cache, said = watched(tmp_path)
    assert torch.equal(cache.read(key_of(NAMES[1])), good[key_of(NAMES[1])]["moments"])
    assert len(said) == 1


@pytest.mark.parametrize("place", range(0, 1500, 29))
def test_any_changed_byte_of_a_shard_is_noticed(tmp_path: Path, place: int) -> None:
    before = filled(tmp_path, NAMES[:2])
    good = {name: before.read(key_of(name)) for name in NAMES[:2]}
    (path,) = shards(tmp_path)
    flip_byte(path, place * path.stat().st_size // 1500)
    cache, said = watched(tmp_path)
    cache.fill(items(NAMES[:2]), Encoder(), batch_size=2)
    assert all(torch.equal(cache.read(key_of(name)), good[name]) for name in good)
    assert said and path.with_name(path.name + ".damaged").exists()


@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_a_truncated_shard_is_renamed(tmp_path: Path, size: int) -> None:
    filled(tmp_path, NAMES)
    (path,) = shards(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    cache, said = watched(tmp_path)
    assert cache.fill(items(NAMES), Encoder()).num_encoded == len(NAMES)
    assert len(said) == 1 and said[0].startswith(f"{path} is not a valid shard")
    assert not path.exists() and path.with_name(path.name + ".damaged").exists()


def test_a_shard_of_another_model_is_renamed(tmp_path: Path) -> None:
    other = "b" * 64
    filled(tmp_path, NAMES, other)
    (path,) = shards(tmp_path)
    (tmp_path / "moments" / MODEL).mkdir()
    path.rename(tmp_path / "moments" / MODEL / path.name)
    mine = tmp_path / "moments" / MODEL / "moments-mine.safetensors"
    mine.write_bytes(b"not ours")
    cache, said = watched(tmp_path)
    assert cache.missing(map(key_of, NAMES)) == [*map(key_of, NAMES)]
    assert len(said) == 1 and "written for something else" in said[0]
    assert mine.exists()


def test_an_open_shard_stays_readable_when_another_process_removes_it(tmp_path: Path) -> None:
    cache = filled(tmp_path, NAMES)
    [path.unlink() for path in shards(tmp_path)]
    assert torch.isfinite(cache.read(key_of(NAMES[0]))).all()


def test_valid_entries_of_a_read_only_cache_stay_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, NAMES)
    (path,) = shards(tmp_path)
    flip_byte(path, offset_of(path, key_of(NAMES[2])))
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(PermissionError(13, "denied")))
    cache, said = watched(tmp_path)
    assert cache.missing(map(key_of, NAMES)) == [key_of(NAMES[2])]
    assert len(said) == 1 and shards(tmp_path) == [path]


# While a run reads


def flip_last_bit(path: Path) -> None:
    """One bit in the mantissa of the last number: a value that looks right."""
    flip_byte(path, path.stat().st_size - 4)


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def reading(folder: Path, encoder: Encoder) -> tuple[MomentsCache, dict[str, torch.Tensor], list[str]]:
    """A cache that a run has filled and read once, with what it read."""
    cache, said = watched(folder)
    cache.fill(items(NAMES), encoder, batch_size=2)
    cache.encode_again_from(lambda: items(NAMES), encoder, batch_size=2)
    return cache, {name: cache.read(key_of(name)) for name in NAMES}, said


@pytest.mark.parametrize("damage", [flip_last_bit, shrink, empty])
def test_an_entry_that_changes_under_a_run_is_encoded_again_to_the_last_bit(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    cache, good, said = reading(tmp_path, Encoder())
    (path,) = shards(tmp_path)
    damage(path)
    for _ in range(2):
        assert all(torch.equal(cache.read(key_of(name)), good[name]) for name in NAMES)
    assert 1 <= len(said) <= 2 and all(line.startswith(f"{path}: ") for line in said)
    assert watched(tmp_path)[0].missing(map(key_of, NAMES)) == []  # for the next run too


def test_only_the_batch_of_the_lost_entry_is_encoded_again(tmp_path: Path) -> None:
    encoder = Encoder()
    cache, _, _ = reading(tmp_path, encoder)
    (path,) = shards(tmp_path)
    flip_byte(path, offset_of(path, key_of(NAMES[2])) + 5)
    encoder.num_images = 0
    for name in NAMES:
        cache.read(key_of(name))
    assert encoder.num_images == 2


def test_what_cannot_be_written_again_is_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder()
    cache, good, _ = reading(tmp_path, encoder)
    (path,) = shards(tmp_path)
    shrink(path)
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(PermissionError(13, "denied")))
    encoder.num_images = 0
    for _ in range(2):
        assert all(torch.equal(cache.read(key_of(name)), good[name]) for name in NAMES)
    assert encoder.num_images <= 6


def test_a_cache_that_was_removed_is_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_shards, "MAX_OPEN_FILES", 1)
    cache, good, _ = reading(tmp_path / "cache", Encoder())
    filled(tmp_path / "other", NAMES)
    MomentsCache(tmp_path / "other", MODEL).read(key_of(NAMES[0]))  # the one open file is now another
    shutil.rmtree(tmp_path / "cache")
    assert all(torch.equal(cache.read(key_of(name)), good[name]) for name in NAMES)


def test_many_shards_need_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_shards, "MAX_OPEN_FILES", 3)
    cache = MomentsCache(tmp_path, MODEL)
    for name in NAMES:
        cache.fill(items([name]), Encoder())
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    reader = MomentsCache(tmp_path, MODEL)
    for name in NAMES * 2:
        assert torch.equal(reader.read(key_of(name)), cache.read(key_of(name)))
    assert len(os.listdir("/proc/self/fd")) <= before + 3 if before else True


def test_a_pipe_in_place_of_a_shard_is_no_shard(tmp_path: Path) -> None:
    filled(tmp_path, NAMES)
    (path,) = shards(tmp_path)
    path.unlink()
    os.mkfifo(path)
    cache, said = watched(tmp_path)
    assert len(cache.missing(map(key_of, NAMES))) == len(NAMES)
    assert len(said) == 1 and "not a regular file" in said[0]
