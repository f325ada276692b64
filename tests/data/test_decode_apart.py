"""Images decoded in other processes: the same results, whatever happens to a process."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ldm.data import decode_apart
from ldm.data.decode_apart import decode_all, decode_one
from ldm.data.masks import AlphaMask
from ldm.data.sample import FileImage, ImageSource


@pytest.fixture
def images(tmp_path: Path) -> list[ImageSource]:
    for index in range(6):
        Image.new("RGBA", (8, 4 + index), (index, 0, 0, 9 * index)).save(tmp_path / f"{index}.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    files = [FileImage(path) for path in sorted(tmp_path.iterdir())]
    return [*files, AlphaMask(files[0]), FileImage(tmp_path / "gone.png")]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Processes are started after the first image; the ids of those that were."""
    monkeypatch.setattr(decode_apart, "ALONE_SEC", 0.0)
    monkeypatch.setattr(decode_apart, "WORTH_SEC", 0.0)
    started: list[int] = []
    start = decode_apart._start

    def noting() -> "decode_apart.subprocess.Popen[bytes]":
        process = start()
        started.append(process.pid)
        return process

    monkeypatch.setattr(decode_apart, "_start", noting)
    yield started
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_other_processes_find_the_same(images: list[ImageSource], at_once: list[int]) -> None:
    found = dict(decode_all(images, num_cores=2))
    assert len(at_once) == 2
    assert found == {image: decode_one(image, {}) for image in images}


def test_what_a_killed_process_leaves_is_decoded_here(images: list[ImageSource], at_once: list[int]) -> None:
    found = []
    for result in decode_all(images, num_cores=2):
        if at_once and not found[1:]:
            for pid in at_once:
                os.kill(pid, signal.SIGKILL)
        found.append(result)
    assert dict(found) == {image: decode_one(image, {}) for image in images} and len(found) == len(images)


def test_a_caller_that_stops_leaves_no_process(images: list[ImageSource], at_once: list[int]) -> None:
    results = decode_all(images, num_cores=1 + len(images) // 4)
    next(results)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert at_once


def test_images_of_a_class_of_the_callers_stay_here(tmp_path: Path, at_once: list[int]) -> None:
    class Own(FileImage):
        pass

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert len(list(decode_all([Own(tmp_path / "a.png")] * 3, num_cores=2))) == 3
    assert not at_once
