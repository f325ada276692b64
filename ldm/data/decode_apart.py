"""Decoding many images, in one process per core: what survey needs to know about each.

A process is started as `python -m ldm.data.decode_apart`. It reads pickled lists of images from its standard input and
writes a pickled list of results for each. It does not import the caller's main module, as `multiprocessing` would.
"""

import contextlib
import gc
import hashlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ldm.data.duplicates import hash_size, perceptual_hash
from ldm.data.rights import read_rights
from ldm.data.sample import ImageInfo, ImageSource, Refusal, refusal_of
from ldm.errors import UserError
from ldm.io.images import decode_image, open_image_noted, to_srgb

ALONE_SEC, WORTH_SEC = 0.4, 1.5
"""How long this process decodes alone, and how long the rest must take for others to be started."""
CHUNK = 16
"""The most images that a process is given at a time."""

Result = tuple[ImageSource, ImageInfo | Refusal]


def decode_all(
    images: Sequence[ImageSource], num_callers: int = 1, num_cores: int | None = None
) -> Iterator[Result]:
    """Every image once, in any order, with what decoding it found out or why it cannot be used.

    Args:
        num_callers: processes that do the same at the same time and share the cores.
        num_cores: processes to use; by default one per core that this process may use.
    """
    cores = num_cores or max(1, _num_cores() // num_callers)
    seen: dict[str, ImageInfo] = {}
    start = time.monotonic()
    for index, image in enumerate(images):
        spent = time.monotonic() - start
        left = len(images) - index
        worth = index > 0 and spent > ALONE_SEC and spent / index * left > WORTH_SEC
        if cores > 1 and worth and _can_travel(images):
            yield from _decode_in_processes(images[index:], min(cores, left))
            return
        yield image, decode_one(image, seen)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _can_travel(images: Sequence[ImageSource]) -> bool:
    """Whether another process knows these classes: it does not import the caller's modules."""
    return all(kind.__module__.startswith("ldm.") for kind in set(map(type, images)))


def decode_one(image: ImageSource, seen: dict[str, ImageInfo]) -> ImageInfo | Refusal:
    """What decoding an image finds out, or why it cannot be used.

    Args:
        seen: results by content hash; the same bytes are decoded once.
    """
    try:
        data = image.read()
        content_hash = hashlib.sha256(data).hexdigest()
        if content_hash not in seen:
            seen[content_hash] = _examine(data, image.name, content_hash)
        return seen[content_hash]
    except UserError as error:
        return refusal_of("", error)
    except MemoryError:
        what = f"{image.name}: too large for the memory of this machine"
        return refusal_of("", UserError(what, "shrink it"))


def _examine(data: bytes, name: str, content_hash: str) -> ImageInfo:
    image, notes = decode_image(data, name=name)
    size = image.width, image.height
    coded = bool(image.info.keys() & {"icc_profile", "cicp"})
    if coded and image.mode in ("L", "RGB", "CMYK"):
        small, color_notes = to_srgb(_shrunk(image))  # many times faster than at full size
    elif image.mode == "RGB":
        small, color_notes = hash_size(image), []
    else:
        whole, notes = open_image_noted(data, name=name)
        small, color_notes = hash_size(whole), []
    if small.mode != "RGB":
        small = small.convert("RGB")
    return ImageInfo(
        content_hash,
        *size,
        perceptual_hash(small),
        (*notes, *color_notes),
        is_black=_is_black(small, data, name),
        rights=read_rights(data),
    )


def _shrunk(image: Any) -> Any:
    """The image at the size of its hash, with what its file says about its colours."""
    small = hash_size(image)
    small.info = image.info
    return small


def _is_black(small: Any, data: bytes, name: str) -> bool:
    """Whether all pixels of an image are black in grey, as the loss uses a mask.

    Pixels that are means of at most 3 of 255 levels may all be black; only then the whole image is looked at.
    """
    if small.convert("L").getextrema()[1] > 3:
        return False
    whole, _ = open_image_noted(data, name=name)
    return bool(whole.convert("L").getextrema()[1] == 0)


def _decode_in_processes(images: Sequence[ImageSource], num_processes: int) -> Iterator[Result]:
    """Decode in other processes; what one that dies leaves is decoded here."""
    chunks: queue.SimpleQueue[Sequence[ImageSource]] = queue.SimpleQueue()
    size = max(1, min(CHUNK, len(images) // (4 * num_processes)))
    for start in range(0, len(images), size):
        chunks.put(images[start : start + size])
    results: queue.SimpleQueue[list[Result] | None] = queue.SimpleQueue()
    workers = [_start() for _ in range(num_processes)]
    threads = [threading.Thread(target=_feed, args=(each, chunks, results), daemon=True) for each in workers]
    left = dict.fromkeys(images)
    try:
        for thread in threads:
            thread.start()
        running = num_processes
        while running:
            found = results.get()
            if found is None:
                running -= 1
                continue
            for image, outcome in found:
                del left[image]
                yield image, outcome
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        for thread in threads:
            thread.join()
    seen: dict[str, ImageInfo] = {}
    yield from ((image, decode_one(image, seen)) for image in left)


def _start() -> "subprocess.Popen[bytes]":
    home = str(Path(__file__).resolve().parents[2])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "ldm.data.decode_apart"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal does not reach it
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def _feed(
    worker: "subprocess.Popen[bytes]",
    chunks: "queue.SimpleQueue[Sequence[ImageSource]]",
    results: "queue.SimpleQueue[list[Result] | None]",
) -> None:
    """Give a process chunks until there are none, and pass on its results; None at the end, or when it dies."""
    assert worker.stdin is not None and worker.stdout is not None
    with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError, queue.Empty):
        while True:
            chunk = chunks.get_nowait()
            pickle.dump(chunk, worker.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            worker.stdin.flush()
            results.put(list(zip(chunk, pickle.load(worker.stdout), strict=True)))
    for stream in (worker.stdin, worker.stdout):
        with contextlib.suppress(OSError):  # what a dead process did not read
            stream.close()
    results.put(None)


def main() -> None:
    """Decode what comes on standard input until it ends. Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # the libraries' objects are not searched for garbage between small images
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the results
    seen: dict[str, ImageInfo] = {}
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            images = pickle.load(sys.stdin.buffer)
            pickle.dump(
                [decode_one(image, seen) for image in images], results, protocol=pickle.HIGHEST_PROTOCOL
            )
            results.flush()


if __name__ == "__main__":
    main()
