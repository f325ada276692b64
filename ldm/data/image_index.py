"""The memo of what decoding an image once found out, so that the next run need not read the image again.

A file's path, size and times of modification and change stand for its bytes. JSON lines in files that are written
whole and never changed: any number of processes may write at once, and reading merges what is there.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ldm.data.sample import ImageInfo, Stamp, stamp_of
from ldm.io.files import sha256_file, write_bytes

FACTS_VERSION = 2
"""Raised when the same bytes would have other facts, such as another perceptual hash, or a stamp another form."""

MAX_FILES = 16
"""With more than these, saving merges them into one."""

FINE_TICK_NS, COARSE_TICK_NS = 50_000_000, 2_000_000_000
"""How far apart two writes must be to have different times, on a usual disk and on one that keeps whole seconds."""

FACTS_FIELDS = {field.name for field in fields(ImageInfo)} - {"named"}


class ImageIndex:
    """Stamp -> Facts.

    Args:
        folder: the cache's folder; the memo is `facts/` in it.
        rehash: distrust what earlier runs wrote; every image is read again and the answers are kept.
    """

    def __init__(self, folder: Path, *, rehash: bool = False) -> None:
        self.folder = Path(folder) / "facts"
        self._files: list[Path] = []
        self._facts: dict[Stamp, ImageInfo] = {}
        self._new: dict[Stamp, ImageInfo] = {}
        self._young: set[Stamp] = set()
        if not rehash:
            self._load()

    def get(self, stamp: Stamp | None) -> ImageInfo | None:
        """What is known of the file with this stamp, or None."""
        return None if stamp is None else self._facts.get(stamp)

    def put(self, stamp: Stamp | None, facts: ImageInfo) -> None:
        """Note the facts of a file whose bytes were read after its stamp was taken."""
        if stamp is None:
            return
        self._facts[stamp] = self._new[stamp] = facts
        if time.time_ns() < _settles_ns(stamp):
            self._young.add(stamp)

    def save(self) -> None:
        """Add what is new to the files.

        A file written a moment before it was read may have been written again with the same size and time: such a
        one is read once more when that moment is over, and left out when its bytes are others.

        Raises:
            UserError: the disk is full or the folder is not writable.
        """
        for stamp in self._young:
            if not _settled(stamp, self._new[stamp]):
                del self._new[stamp]
        self._young.clear()
        if not self._new:
            return
        merged = self._files if len(self._files) >= MAX_FILES else []
        kept = self._facts if merged else self._new
        # the time comes first: of two files with one stamp, read in order, the later one counts
        path = self.folder / f"facts-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"
        write_bytes(path, "".join(_line(*entry) for entry in kept.items()).encode())
        for old in merged:
            old.unlink(missing_ok=True)  # its lines are in the new file
        self._files = [path] if merged else [*self._files, path]
        self._new = {}

    def _load(self) -> None:
        for path in sorted(self.folder.glob("facts-*.jsonl")):
            try:
                text = path.read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue  # merged by another process meanwhile, or not for us to read
            self._files.append(path)
            self._facts.update(entry for line in text.splitlines() for entry in _entries(line))


def _line(stamp: Stamp, facts: ImageInfo) -> str:
    kept = {name: value for name, value in asdict(facts).items() if name in FACTS_FIELDS}
    body = json.dumps([FACTS_VERSION, *stamp, kept])
    return json.dumps([_checksum(body), body]) + "\n"


def _entries(line: str) -> Iterator[tuple[Stamp, ImageInfo]]:
    """The entry of a line; none where it is damaged or of another version, since a memo may forget."""
    try:
        total, body = json.loads(line)
        if total != _checksum(body):
            return
        version, path, size, mtime_ns, ctime_ns, facts = json.loads(body)
    except (ValueError, TypeError, AttributeError):
        return
    if version == FACTS_VERSION and facts.keys() == FACTS_FIELDS:
        yield (path, size, mtime_ns, ctime_ns), _facts_of(facts)


def _facts_of(values: dict[str, Any]) -> ImageInfo:
    return ImageInfo(**{**values, "notes": tuple(values["notes"])})


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _settles_ns(stamp: Stamp) -> int:
    """From when on another write would show in the times."""
    return max(
        time_ns + (FINE_TICK_NS if time_ns % 1_000_000_000 else COARSE_TICK_NS) for time_ns in stamp[2:]
    )


def _settled(stamp: Stamp, facts: ImageInfo) -> bool:
    """Whether a file that was young when it was read has these facts now that another write would show."""
    wait_ns = max(0, _settles_ns(stamp) - time.time_ns())
    if wait_ns > FINE_TICK_NS:
        return False  # too long to wait for, or a clock that is wrong
    time.sleep(wait_ns / 1e9)
    try:
        same = stamp_of(stamp[0], os.stat(stamp[0])) == stamp
        return same and sha256_file(Path(stamp[0])) == facts.content_hash
    except OSError:
        return False  # no file of its own, such as a row of a parquet file
