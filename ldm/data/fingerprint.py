"""Which samples a run is trained on, so that a run that goes on can tell whether they still are what they were."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ldm.data.masks import AlphaMask
from ldm.data.prepare import BucketedSample
from ldm.data.sample import ImageSource, Sample

FINGERPRINT_VERSION = 1
"""Raised when the same sample would have another hash."""

_NUM_NAMED = 3


@dataclass(frozen=True)
class Fingerprint:
    """A hash of each sample.

    Attributes:
        samples: sample id -> 32 hex digits, in the order of the samples: the order of training follows from it.
    """

    samples: Mapping[str, str]

    @cached_property
    def hash(self) -> str:
        """One SHA-256 over all samples and their order, 64 hex digits."""
        return _sha256([FINGERPRINT_VERSION, list(self.samples.items())])

    @cached_property
    def encoded(self) -> bytes:
        """The fingerprint as a JSON file; what an id holds that is no UTF-8 is kept, as an escape."""
        tree = {"version": FINGERPRINT_VERSION, "hash": self.hash, "samples": dict(self.samples)}
        return (json.dumps(tree, indent=0) + "\n").encode()

    def changes_since(self, before: "Fingerprint") -> str:
        """What became of the samples, such as "2 added ('a.png', 'b.png'), 1 removed ('c.png')"; empty for nothing.

        A sample has changed when one of its images has other bytes, or its captions, its texts, its mask, or whether it
        may be mirrored are not what they were.
        """
        old, new = before.samples, self.samples
        kinds = {
            "added": [sample_id for sample_id in new if sample_id not in old],
            "removed": [sample_id for sample_id in old if sample_id not in new],
            "changed": [
                sample_id for sample_id in new if old.get(sample_id, new[sample_id]) != new[sample_id]
            ],
        }
        said = [f"{len(ids)} {kind} ({_some(ids)})" for kind, ids in kinds.items() if ids]
        if not said and list(old) != list(new):
            return "the same samples in another order"
        return ", ".join(said)


def decode_fingerprint(data: bytes) -> Fingerprint | None:
    """The fingerprint that `encoded` gave; None where the bytes are damaged or of another version."""
    try:
        tree = json.loads(data)
        found = Fingerprint(dict(tree["samples"]))
        return found if (tree["version"], tree["hash"]) == (FINGERPRINT_VERSION, found.hash) else None
    except (ValueError, TypeError, KeyError):
        return None


def fingerprint(placed: Sequence[BucketedSample], mask_hashes: Mapping[ImageSource, str]) -> Fingerprint:
    """The fingerprint of the samples that a run uses, held out or not; where the data lies is no part of it.

    Args:
        mask_hashes: SHA-256 of each of `mask_files(placed)`.
    """
    return Fingerprint({one.sample.sample_id: _sample_hash(one, mask_hashes) for one in placed})


def mask_files(placed: Sequence[BucketedSample]) -> list[ImageSource]:
    """The masks that are files of their own: transparency is in the bytes of the image."""
    return list(dict.fromkeys(mask for one in placed if (mask := _mask_file(one.sample)) is not None))


def _mask_file(sample: Sample) -> ImageSource | None:
    return None if isinstance(sample.loss_mask, AlphaMask) else sample.loss_mask


def _sample_hash(one: BucketedSample, mask_hashes: Mapping[ImageSource, str]) -> str:
    sample, mask = one.sample, _mask_file(one.sample)
    mask_hash = None if mask is None else mask_hashes[mask]
    told = [one.facts.content_hash, sample.captions, sample.may_flip, mask_hash, *one.inputs_record]
    return _sha256(told)[:32]


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _some(ids: Sequence[str]) -> str:
    """The first ones, quoted, so that an id with a line break stays in its line."""
    return ", ".join(map(repr, ids[:_NUM_NAMED])) + (", ..." if len(ids) > _NUM_NAMED else "")
