"""What decoding found out about each image, kept so that the next run need not read the image again.

Images are recognised by path, size and the times of modification and change. The index consists of JSON Lines files
that are written atomically and never changed, so any number of processes can write at once; reading merges all files.
"""

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ldm.data.rights import NO_RIGHTS, ImageRights
from ldm.data.sample import ImageInfo, Stamp, stamp_of
from ldm.io.files import sha256_file, write_bytes
from ldm.io.json_files import parse_json
from ldm.io.opening import read_text

FACTS_VERSION = 4
"""Increased when the same bytes would give other values, such as another perceptual hash, or stamps change."""

MAX_FILES = 16
"""Saving merges the files into one when there are this many."""

FINE_TICK_NS, COARSE_TICK_NS = 50_000_000, 2_000_000_000
"""How far apart two writes must be to get different times: on most disks, and on disks that store whole seconds."""

FILE_NAME = re.compile(r"facts-[0-9]{20}-[0-9a-f]{8}\.jsonl")
"""The files of the index."""

FACTS_FIELDS = dict.fromkeys(field.name for field in fields(ImageInfo) if field.name != "named")


class ImageIndex:
    """Stamp -> ImageInfo.

    Args:
        folder: the cache's folder; the index is `facts/` in it.
        rehash: ignore what earlier runs wrote, so that every image is read again.
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
        """The entry for this stamp, or None."""
        return None if stamp is None else self._facts.get(stamp)

    def put(self, stamp: Stamp | None, facts: ImageInfo) -> None:
        """Add an entry for a file whose bytes were read after its stamp was taken."""
        if stamp is None:
            return
        self._facts[stamp] = self._new[stamp] = facts
        if time.time_ns() < _settles_ns(stamp):
            self._young.add(stamp)

    def save(self) -> None:
        """Write the new entries to disk.

        A file that was modified just before it was read may have been modified again with the same size and time. Such
        a file is read once more after a short wait, and dropped if its bytes have changed.

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
        # the time comes first, so that of two entries for one stamp the later one wins when the files are read in order
        path = self.folder / f"facts-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"
        write_bytes(path, "".join(_line(*entry) for entry in kept.items()).encode())
        for old in merged:
            old.unlink(missing_ok=True)  # its lines are in the new file
        self._files = [path] if merged else [*self._files, path]
        self._new = {}

    def _load(self) -> None:
        for path in sorted(self.folder.glob("facts-*.jsonl")):
            if not FILE_NAME.fullmatch(path.name):
                continue  # not ours: merging removes what it has read
            try:
                text = read_text(path, errors="replace")
            except OSError:
                continue  # merged by another process, or not readable for us
            self._files.append(path)
            self._facts.update(entry for line in text.splitlines() for entry in _entries(line))


def _line(stamp: Stamp, facts: ImageInfo) -> str:
    kept = {name: getattr(facts, name) for name in FACTS_FIELDS}
    kept["rights"] = None if facts.rights == NO_RIGHTS else asdict(facts.rights)
    rest = json.dumps([FACTS_VERSION, *stamp, kept])[1:]
    return f'["{_checksum(rest)}", {rest}\n'


def _entries(line: str) -> Iterator[tuple[Stamp, ImageInfo]]:
    """The entry of a line; nothing if it is damaged or of another version, for a lost entry only costs time."""
    start, _, rest = line.partition(" ")
    if start != f'["{_checksum(rest)}",':
        return
    try:
        version, path, size, mtime_ns, ctime_ns, facts = parse_json(f"[{rest}")
    except (ValueError, TypeError, AttributeError):
        return
    if version == FACTS_VERSION and facts.keys() == FACTS_FIELDS.keys():
        yield (path, size, mtime_ns, ctime_ns), _facts_of(facts)


def _facts_of(values: dict[str, Any]) -> ImageInfo:
    rights = ImageRights(**values["rights"]) if values["rights"] else NO_RIGHTS
    return ImageInfo(**{**values, "notes": tuple(values["notes"]), "rights": rights})


def _checksum(rest: str) -> str:
    """Of a line after its first entry, the checksum itself."""
    return hashlib.sha256(rest.encode()).hexdigest()[:16]


def _settles_ns(stamp: Stamp) -> int:
    """The time after which another write would change the stamp."""
    return max(
        time_ns + (FINE_TICK_NS if time_ns % 1_000_000_000 else COARSE_TICK_NS) for time_ns in stamp[2:]
    )


def _settled(stamp: Stamp, facts: ImageInfo) -> bool:
    """Whether a recently modified file still has the same bytes, now that another write would change its stamp."""
    wait_ns = max(0, _settles_ns(stamp) - time.time_ns())
    if wait_ns > FINE_TICK_NS:
        return False  # too long to wait, or the clock is wrong
    time.sleep(wait_ns / 1e9)
    try:
        same = stamp_of(stamp[0], os.stat(stamp[0])) == stamp
        return same and sha256_file(Path(stamp[0])) == facts.content_hash
    except OSError:
        return False  # not a file by itself, such as a row of a parquet file
