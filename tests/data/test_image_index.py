"""The image index: entries hold while path, size and times stay the same; many writers; damaged lines are dropped."""

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from ldm.data.image_index import MAX_FILES, ImageIndex
from ldm.data.rights import NO_RIGHTS, ImageRights
from ldm.data.sample import FileImage, ImageInfo, Stamp

OLD_NS = 1_000_000_000_123_456_789


def facts_of(text: str = "x") -> ImageInfo:
    return ImageInfo(
        hashlib.sha256(text.encode()).hexdigest(),
        3,
        4,
        2**64 - 1,
        ("first of 2 frames used", "é\ud800"),
        rights=ImageRights("tdm:reservation 1", True, {"dc:rights": text}) if text == "b" else NO_RIGHTS,
    )


def stamp(name: str = "a.png", size: int = 1, mtime_ns: int = OLD_NS, ctime_ns: int = OLD_NS) -> Stamp:
    return f"/data/{name}", size, mtime_ns, ctime_ns


def test_an_entry_is_found_while_the_stamp_is_the_same(tmp_path: Path) -> None:
    image_index = ImageIndex(tmp_path)
    image_index.put(stamp(), facts_of())
    image_index.put(stamp("b\ud800.png"), facts_of("b"))
    image_index.put(None, facts_of())
    image_index.save()
    again = ImageIndex(tmp_path)
    for reader in (image_index, again):
        assert reader.get(stamp()) == facts_of()
        assert reader.get(stamp("b\ud800.png")) == facts_of("b")
        for other in (
            stamp("c.png"),
            stamp(size=2),
            stamp(mtime_ns=OLD_NS + 1),
            stamp(ctime_ns=OLD_NS + 1),
            None,
        ):
            assert reader.get(other) is None
    assert ImageIndex(tmp_path, rehash=True).get(stamp()) is None


def test_the_entries_of_rehashing_are_kept(tmp_path: Path) -> None:
    first = ImageIndex(tmp_path)
    first.put(stamp("b.png"), facts_of("b"))
    first.save()
    image_index = ImageIndex(tmp_path, rehash=True)
    image_index.put(stamp(), facts_of())
    image_index.save()
    assert ImageIndex(tmp_path).get(stamp()) == facts_of() and ImageIndex(tmp_path).get(stamp("b.png"))


def test_of_two_entries_for_a_file_the_later_one_counts(tmp_path: Path) -> None:
    """The entries of rehashing must win over older ones, in whatever order the file system lists the files."""
    for turn in range(12):
        image_index = ImageIndex(tmp_path, rehash=True)
        image_index.put(stamp(), facts_of(f"answer {turn}"))
        image_index.save()
        assert ImageIndex(tmp_path).get(stamp()) == facts_of(f"answer {turn}")


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    image_index = ImageIndex(tmp_path)
    image_index.save()
    image_index.put(stamp(), facts_of())
    image_index.save()
    image_index.save()
    ImageIndex(tmp_path).save()
    assert len(list((tmp_path / "facts").iterdir())) == 1


def test_many_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    def write(writer: int) -> None:
        image_index = ImageIndex(tmp_path)
        for turn in range(MAX_FILES):
            image_index.put(stamp(f"{writer} {turn}"), facts_of(f"{writer} {turn}"))
            image_index.save()

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(3)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    image_index = ImageIndex(tmp_path)
    image_index.put(stamp(), facts_of())
    image_index.save()
    assert len(list((tmp_path / "facts").iterdir())) == 1  # enough to be merged
    again = ImageIndex(tmp_path)
    for writer in range(3):
        for turn in range(MAX_FILES):
            assert again.get(stamp(f"{writer} {turn}")) == facts_of(f"{writer} {turn}")


@pytest.mark.parametrize("place", range(0, 100, 4))
def test_a_damaged_line_is_dropped_and_the_others_are_not(tmp_path: Path, place: int) -> None:
    image_index = ImageIndex(tmp_path)
    for name in ("a", "b", "c"):
        image_index.put(stamp(name), facts_of(name))
    image_index.save()
    (path,) = (tmp_path / "facts").iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    at = place * (len(lines[1]) - 2) // 100
    lines[1] = lines[1][:at] + bytes([lines[1][at] ^ 0x1]) + lines[1][at + 1 :]
    path.write_bytes(b"".join(lines) + b'["half a li')
    again = ImageIndex(tmp_path)
    assert [again.get(stamp(name)) for name in "abc"] == [facts_of("a"), None, facts_of("c")]


def read(path: Path, image_index: ImageIndex) -> Stamp:
    """Survey a file like a run: first its stamp, then its bytes."""
    found = FileImage(path).stamp()
    assert found is not None
    image_index.put(found, facts_of(path.read_text()))
    return found


def test_a_file_modified_again_right_away_is_not_remembered(tmp_path: Path) -> None:
    for name in ("same", "changed", "gone"):
        (tmp_path / name).write_text("one")
    image_index = ImageIndex(tmp_path / "cache")
    stamps = {name: read(tmp_path / name, image_index) for name in ("same", "changed", "gone")}
    (tmp_path / "changed").write_text("two")
    os.utime(tmp_path / "changed", ns=(stamps["changed"][2],) * 2)  # a slow clock
    (tmp_path / "gone").unlink()
    (tmp_path / "raced").write_text("two")
    raced = FileImage(tmp_path / "raced").stamp()
    image_index.put(raced, facts_of("one"))  # read before a change that the times do not show
    image_index.save()
    again = ImageIndex(tmp_path / "cache")
    assert again.get(stamps["same"]) == facts_of("one")
    assert again.get(stamps["changed"]) is None and again.get(stamps["gone"]) is None
    assert again.get(raced) is None


def test_times_in_whole_seconds_are_trusted_after_two_seconds(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    now_ns = path.stat().st_mtime_ns // 10**9 * 10**9
    known = {}
    for age_sec in (0, 10, -100):
        os.utime(path, ns=(now_ns - age_sec * 10**9,) * 2)
        image_index = ImageIndex(tmp_path / f"cache {age_sec}")
        found = read(path, image_index)
        image_index.save()
        known[age_sec] = ImageIndex(tmp_path / f"cache {age_sec}").get(found) is not None
    assert known == {0: False, 10: True, -100: False}


def test_another_file_with_the_old_size_and_time_is_read_again(tmp_path: Path) -> None:
    """As after `cp -p`, rsync or unpacking."""
    path = tmp_path / "a"
    path.write_text("one")
    os.utime(path, ns=(OLD_NS, OLD_NS))
    image_index = ImageIndex(tmp_path / "cache")
    found = read(path, image_index)
    image_index.save()
    assert ImageIndex(tmp_path / "cache").get(FileImage(path).stamp()) == facts_of("one")
    time.sleep(0.02)  # so that the clock of the file system advances
    path.write_text("two")
    os.utime(path, ns=(OLD_NS, OLD_NS))
    again = FileImage(path).stamp()
    assert again and again[:3] == found[:3]
    assert ImageIndex(tmp_path / "cache").get(again) is None


def test_files_of_others_are_neither_read_nor_merged(tmp_path: Path) -> None:
    image_index = ImageIndex(tmp_path)
    image_index.put(stamp(), facts_of())
    image_index.save()
    (written,) = image_index.folder.iterdir()
    mine = image_index.folder / "facts-mine.jsonl"
    mine.write_bytes(written.read_bytes())
    written.unlink()
    assert ImageIndex(tmp_path).get(stamp()) is None
    for number in range(MAX_FILES + 2):
        again = ImageIndex(tmp_path)
        again.put(stamp(f"{number}.png"), facts_of())
        again.save()
    assert mine.exists()
