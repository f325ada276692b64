"""Samples that a run leaves out although they are in its data: `data.leave_out` and `data.leave_out_file`.

An id can be given as its hash, because an id is often a file name, which may say whose image it was. The hash has no
salt: the run must recognise the sample, and whoever knows an id can check that it was left out.
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.data.sources.reading import Reading
from ldm.errors import UserError, closest
from ldm.io.files import write_bytes
from ldm.io.opening import MAX_TEXT_BYTES, read_bytes

ID_COLUMN = "sample_id"
"""Of a drop list: the column with the ids."""
HASHED = "sha256:"
_REPEAT = re.compile(r"#\d+$")


def hashed_id(sample_id: str) -> str:
    """An id as `data.leave_out` keeps it, without saying it."""
    return HASHED + hashlib.sha256(sample_id.encode(errors="surrogatepass")).hexdigest()


def first_id(sample_id: str) -> str:
    """The id of the first of a sample's repeats, "a.png" for "a.png#2"."""
    return _REPEAT.sub("", sample_id)


@dataclass(frozen=True)
class LeftOut:
    """Which samples are left out.

    Attributes:
        entries: ids, and hashes of ids.
        repeated: samples have several ids: "a.png", "a.png#2", ...; the first stands for all of them.
    """

    entries: frozenset[str]
    repeated: bool = False

    def has(self, sample_id: str) -> bool:
        """Whether a sample is left out."""
        return bool(self.entries & self._names(sample_id))

    def unmatched(self, sample_ids: Iterable[str]) -> set[str]:
        """The entries that no sample has."""
        return set(self.entries).difference(*map(self._names, sample_ids))

    def _names(self, sample_id: str) -> set[str]:
        own = first_id(sample_id) if self.repeated else sample_id
        return {sample_id, own, hashed_id(own)}


def write_drop_list(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write ids, each with the reason, as `data.leave_out_file` reads them.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([(ID_COLUMN, "reason"), *rows])
    write_bytes(path, text.getvalue().encode(errors="surrogateescape"))  # a file name need not be UTF-8


def read_drop_list(path: Path) -> list[str]:
    """The ids in the column `sample_id` of a CSV file; its other columns are for people.

    Raises:
        UserError: the file is missing or not such a table.
    """
    named, fix = f"data.leave_out_file = {path}", "name a file that `ldm ledger --drop-list` wrote"
    try:
        text = read_bytes(path.expanduser(), MAX_TEXT_BYTES).decode("utf-8-sig", "surrogateescape")
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        if ID_COLUMN not in (rows.fieldnames or ()):
            raise UserError(f"{named} has no column {ID_COLUMN}", fix)
        return [row[ID_COLUMN] for row in rows if row[ID_COLUMN]]
    except OSError as error:
        raise UserError(f"{named} cannot be read ({error.strerror})", fix) from None
    except csv.Error as error:
        raise UserError(f"{named} is not CSV ({error})", fix) from None


def without(reading: Reading, entries: Sequence[str], *, repeated: bool, file: Path | None = None) -> Reading:
    """What was read, without the samples and refusals that are left out.

    A hash that no sample has is ignored: the file may have been removed since.

    Args:
        file: a drop list with further entries.

    Raises:
        UserError: no sample has an id that is left out, or the drop list cannot be read.
    """
    listed = read_drop_list(file) if file is not None else []
    if not (entries or listed):
        return reading
    left_out = LeftOut(frozenset((*entries, *listed)), repeated)
    ids = [sample.sample_id for sample in reading.samples]
    ids += [refusal.sample_id for refusal in reading.refusals]
    unknown = sorted(each for each in left_out.unmatched(ids) if not each.startswith(HASHED))
    if unknown:
        where = "data.leave_out" if unknown[0] in entries else f"data.leave_out_file = {file}"
        raise UserError(f"{where}: {unknown_sample(unknown[0], ids)}", "correct it")
    return Reading(
        [sample for sample in reading.samples if not left_out.has(sample.sample_id)],
        [refusal for refusal in reading.refusals if not left_out.has(refusal.sample_id)],
    )


def unknown_sample(sample_id: str, known: Iterable[str]) -> str:
    """That no sample has an id, with the nearest one."""
    guess = closest(sample_id, known)
    return f"no sample is called {sample_id!r}" + (f"; the nearest is {guess!r}" if guess else "")
