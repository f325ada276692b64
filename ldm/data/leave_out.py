"""Samples that a run leaves out although they are in its data: `data.leave_out`.

An id can be given as its hash, because an id is often a file name, which may say whose image it was. The hash has no
salt: the run must recognise the sample, and whoever knows an id can check that it was left out.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ldm.data.sources.reading import Reading
from ldm.errors import UserError, closest

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


def without(reading: Reading, entries: Sequence[str], *, repeated: bool) -> Reading:
    """What was read, without the samples and refusals that are left out.

    A hash that no sample has is ignored: the file may have been removed since.

    Raises:
        UserError: no sample has an id that is left out.
    """
    if not entries:
        return reading
    left_out = LeftOut(frozenset(entries), repeated)
    ids = [sample.sample_id for sample in reading.samples]
    ids += [refusal.sample_id for refusal in reading.refusals]
    unknown = sorted(each for each in left_out.unmatched(ids) if not each.startswith(HASHED))
    if unknown:
        raise UserError(f"data.leave_out: {unknown_sample(unknown[0], ids)}", "correct it")
    return Reading(
        [sample for sample in reading.samples if not left_out.has(sample.sample_id)],
        [refusal for refusal in reading.refusals if not left_out.has(refusal.sample_id)],
    )


def unknown_sample(sample_id: str, known: Iterable[str]) -> str:
    """That no sample has an id, with the nearest one."""
    guess = closest(sample_id, known)
    return f"no sample is called {sample_id!r}" + (f"; the nearest is {guess!r}" if guess else "")
