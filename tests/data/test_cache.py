"""The moments cache: misses and hits, the right moments for each key, sharing among processes, killed fills."""

import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.data.cache import fill as cache_fill
from ldm.data.cache import shards as cache_shards
from ldm.data.cache.cache_folder import CacheSettings, cache_root
from ldm.data.cache.keys import entry_key, prompt_key, tensors_hash
from ldm.data.cache.moments import CacheItem, MomentsCache
from ldm.data.sample import FileImage, read_unchanged
from ldm.errors import UserError
from tests.support.tiny_cache import MODEL, Encoder, filled, item, items, key_of, pixels_of, shards
from tests.support.tiny_models import make_sd1

NAMES = [f"image {index}" for index in range(11)]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_a_key_changes_with_everything_that_changes_the_entry_and_nothing_else() -> None:
    base = ("bytes", "transform", "weights")
    assert entry_key(*base) == entry_key(*base)
    others = [entry_key(*(*base[:i], "other", *base[i + 1 :])) for i in range(3)]
    parted = [entry_key("bytest", "ransform", "weights"), entry_key("transform", "bytes", "weights")]
    keys = [entry_key(*base), *others, *parted, prompt_key("bytes", "weights")]
    assert len(set(keys)) == len(keys) and all(len(key) == 64 for key in keys)


def test_a_networks_hash_covers_names_dtypes_shapes_bytes_and_config(tmp_path: Path) -> None:
    base = tensors_hash(network())
    assert tensors_hash(network().to(memory_format=torch.channels_last)) == base
    assert tensors_hash(network().eval().requires_grad_(False)) == base
    changed = [network() for _ in range(4)]
    with torch.no_grad():
        changed[0][0].weight[0, 0, 0, 0] += 1e-6
        changed[1][1].running_mean[0] += 1e-6
    changed[2].double()
    changed[3][0].weight = nn.Parameter(changed[3][0].weight.reshape(3, 4, 3, 3))
    renamed = nn.ModuleDict({"a": network()[0], "b": network()[1]})
    assert len({base, *map(tensors_hash, [*changed, renamed])}) == 6


def test_a_networks_config_counts_but_not_where_it_was_loaded_from(tmp_path: Path) -> None:
    parts = make_sd1(tmp_path)
    for module, config in (
        (parts.autoencoder, parts.autoencoder.vae.config),
        (parts.text_encoder, parts.text_encoder.model.config),
    ):
        base = tensors_hash(module)
        if hasattr(config, "to_dict"):
            config._name_or_path, config.transformers_version = "elsewhere", "0"
            assert tensors_hash(module) == base
            config.hidden_act = "relu"
        else:
            parts.autoencoder.vae.register_to_config(_name_or_path="elsewhere")
            assert tensors_hash(module) == base
            parts.autoencoder.vae.register_to_config(act_fn="relu")
        assert tensors_hash(module) != base


def test_a_second_fill_encodes_nothing_and_another_autoencoder_all(tmp_path: Path) -> None:
    assert filled(tmp_path, NAMES).missing([]) == []
    encoder = Encoder()
    for model, num_encoded in ((MODEL, 0), ("b" * 64, len(NAMES)), (MODEL, 0)):
        cache = MomentsCache(tmp_path, model)
        done = cache.fill(items(NAMES), encoder, batch_size=2)
        assert (done.num_found, done.num_encoded) == (len(NAMES) - num_encoded, num_encoded)
    assert encoder.num_images == len(NAMES)
    cache = MomentsCache(tmp_path, MODEL)
    assert cache.missing([key_of("new"), *map(key_of, NAMES), key_of("new")]) == [key_of("new")]


def test_each_key_has_its_own_moments_in_any_order(tmp_path: Path) -> None:
    wanted = [item(name, width) for name in NAMES for width in (8, 16)]
    wanted = [CacheItem(f"{i.key[:60]}{n:04d}", i.load) for n, i in enumerate(wanted)]
    order = torch.randperm(len(wanted), generator=torch.Generator().manual_seed(1)).tolist()
    MomentsCache(tmp_path, MODEL).fill([wanted[i] for i in order] * 2, Encoder(), batch_size=4)
    cache = MomentsCache(tmp_path, MODEL)
    for wish in reversed(wanted):
        torch.testing.assert_close(cache.read(wish.key), Encoder()(wish.load()[None])[0], atol=1e-3, rtol=0)
        assert cache.read(wish.key).dtype == torch.float32


def test_writing_into_a_read_tensor_does_not_change_the_entry(tmp_path: Path) -> None:
    cache = filled(tmp_path, NAMES)
    kept = cache.read(key_of(NAMES[0])).clone()
    cache.read(key_of(NAMES[0])).zero_()
    assert torch.equal(cache.read(key_of(NAMES[0])), kept)


def test_a_missing_entry_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{key_of('x')} is not in the cache"):
        filled(tmp_path, NAMES[:2]).read(key_of("x"))


def test_a_cache_can_be_pickled_for_a_loader_process(tmp_path: Path) -> None:
    cache = filled(tmp_path, NAMES)
    copy = pickle.loads(pickle.dumps(cache))
    assert torch.equal(copy.read(key_of(NAMES[3])), cache.read(key_of(NAMES[3])))


def bits(folder: Path) -> dict[str, str]:
    """The entries of NAMES in a cache, as hashes."""
    cache = MomentsCache(folder, MODEL)
    return {name: hashlib.sha256(cache.read(key_of(name)).numpy()).hexdigest() for name in NAMES}


def test_three_processes_fill_in_shares_and_read_the_union(tmp_path: Path) -> None:
    barrier, encoders = threading.Barrier(3), [Encoder() for _ in range(3)]
    caches = [MomentsCache(tmp_path / "shared", MODEL) for _ in range(3)]

    def fill(rank: int) -> None:
        caches[rank].fill(
            items(NAMES), encoders[rank], rank=rank, num_processes=3, barrier=barrier.wait, batch_size=2
        )

    threads = [threading.Thread(target=fill, args=(rank,)) for rank in range(3)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert [encoder.num_images for encoder in encoders] == [4, 4, 3]  # batches of 2 in turn, the last has 1
    for cache in caches:
        assert all(torch.isfinite(cache.read(key_of(name))).all() for name in NAMES)
    filled(tmp_path / "alone", NAMES)
    assert bits(tmp_path / "shared") == bits(tmp_path / "alone")


def test_after_the_barrier_a_process_sees_what_the_others_wrote(tmp_path: Path) -> None:
    caches = [MomentsCache(tmp_path, MODEL) for _ in range(3)]

    def fill(rank: int) -> None:
        """The first waits for the second, which waits for the third."""
        others = (lambda: fill(rank + 1)) if rank < 2 else (lambda: None)
        caches[rank].fill(items(NAMES), Encoder(), rank=rank, num_processes=3, barrier=others, batch_size=2)

    fill(0)
    assert all(key_of(name) in cache.store for name in NAMES for cache in caches)


def test_processes_without_a_shared_disk_get_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"5 of 11 entries are missing .* on a disk that all processes share"):
        MomentsCache(tmp_path, MODEL).fill(items(NAMES), Encoder(), rank=0, num_processes=2, batch_size=2)


def test_two_runs_that_fill_at_once_do_no_harm(tmp_path: Path) -> None:
    threads = [threading.Thread(target=filled, args=(tmp_path, NAMES)) for _ in range(3)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    filled(tmp_path / "alone", NAMES)
    assert bits(tmp_path) == bits(tmp_path / "alone")


KILLED = """
import os, signal, sys
from pathlib import Path
from ldm.data.cache import fill as cache_fill
from tests.support.tiny_cache import MODEL, Encoder, items
from ldm.data.cache.moments import MomentsCache

cache_fill.MAX_SHARD_ENTRIES = 2
encoder = Encoder()
def encode(pixel_values):
    if encoder.num_images == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return encoder(pixel_values)
MomentsCache(Path(sys.argv[1]), MODEL).fill(items([f"image {index}" for index in range(11)]), encode, batch_size=2)
"""


def test_a_killed_fill_resumes_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], env={**os.environ, "PYTHONPATH": "."})
    assert done.returncode == -signal.SIGKILL
    encoder = Encoder()
    result = MomentsCache(folder, MODEL).fill(items(NAMES), encoder, batch_size=2)
    assert (result.num_found, encoder.num_images) == (6, 5)
    filled(tmp_path / "whole", NAMES)
    assert bits(folder) == bits(tmp_path / "whole")


def test_completing_a_partial_batch_gives_the_same_bits(tmp_path: Path) -> None:
    """Other runs leave other gaps: a batch is made of neighbours in `wanted`, whatever the cache already has."""
    filled(tmp_path / "whole", NAMES)
    cache = filled(tmp_path, NAMES)
    parts = {key_of(name): {"moments": cache.read(key_of(name))} for name in NAMES[::2]}
    [path.unlink() for path in shards(tmp_path)]
    MomentsCache(tmp_path, MODEL).store.write(parts)
    assert MomentsCache(tmp_path, MODEL).fill(items(NAMES), Encoder(), batch_size=2).num_encoded == 5
    assert bits(tmp_path) == bits(tmp_path / "whole")


def test_what_was_encoded_before_an_error_is_kept(tmp_path: Path) -> None:
    def gone() -> torch.Tensor:
        raise UserError("image 5 has gone")

    wanted = [*items(NAMES[:4]), CacheItem(key_of("gone"), gone)]
    with pytest.raises(UserError, match="image 5 has gone"):
        MomentsCache(tmp_path, MODEL).fill(wanted, Encoder(), batch_size=2)
    assert MomentsCache(tmp_path, MODEL).missing([w.key for w in wanted]) == [key_of("gone")]


@pytest.mark.parametrize("limit", ["MAX_SHARD_ENTRIES", "MAX_SHARD_BYTES", "MAX_SHARD_SEC"])
def test_shards_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    size = pixels_of("x")[:, ::2, ::2].nbytes * 4 // 3
    bound = {"MAX_SHARD_ENTRIES": 4, "MAX_SHARD_BYTES": 4 * size, "MAX_SHARD_SEC": -1.0}[limit]
    monkeypatch.setattr(cache_fill, limit, bound)
    filled(tmp_path, NAMES)
    num_entries = sorted(
        len(cache_shards.Shard.open(p, "moments", MODEL).checksums) for p in shards(tmp_path)
    )
    assert num_entries == ([1, 2, 2, 2, 2, 2] if limit == "MAX_SHARD_SEC" else [3, 4, 4])


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    needed = len(NAMES) * 4 * 16 * 4 + cache_fill.SPARE_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed - 1))
    with pytest.raises(
        UserError, match=r"the disk is full: 67\.1 MB are needed, 67\.1 MB are free: .*`ldm data prune`"
    ):
        filled(tmp_path / "new", NAMES)
    assert not shards(tmp_path / "new")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed))
    filled(tmp_path / "new", NAMES)


def test_moments_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite: use it in float32"):
        MomentsCache(tmp_path, MODEL).fill(items(NAMES), lambda p: Encoder()(p) / 0)


def test_an_image_that_changed_since_it_was_checked_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    content_hash = hashlib.sha256(b"one").hexdigest()
    assert read_unchanged(FileImage(path), content_hash) == b"one"
    path.write_bytes(b"two")
    with pytest.raises(UserError, match=r"a.png has changed since it was checked"):
        read_unchanged(FileImage(path), content_hash)


def test_the_folder_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, root in (
        ("HOME", str(tmp_path), tmp_path / ".cache/open-ldm"),
        ("XDG_CACHE_HOME", "relative", tmp_path / ".cache/open-ldm"),
        ("XDG_CACHE_HOME", "/xdg", Path("/xdg/open-ldm")),
        ("LDM_CACHE_DIR", "~/mine", tmp_path / "mine"),
    ):
        if name == "HOME":
            (
                monkeypatch.delenv("XDG_CACHE_HOME", raising=False),
                monkeypatch.delenv("LDM_CACHE_DIR", raising=False),
            )
        monkeypatch.setenv(name, value)
        assert cache_root() == CacheSettings().root() == root
    assert CacheSettings(folder=Path("~/other")).root() == tmp_path / "other"
