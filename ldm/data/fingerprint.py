"""A hash of every sample of a run, by which a resumed run notices that its data has changed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ldm.data.masks import AlphaMask
from ldm.data.prepare import BucketedSample
from ldm.data.sample import ImageSource, Sample
from ldm.io.json_files import parse_json

FINGERPRINT_VERSION = 1
"""Increased when the hash of an unchanged sample changes."""

_NUM_NAMED = 3


@dataclass(frozen=True)
class Fingerprint:
    """A hash of each sample.

    Attributes:
        samples: sample id -> 32 hex digits, in the order of the samples, which determines the order of training.
    """

    samples: Mapping[str, str]

    @cached_property
    def hash(self) -> str:
        """One SHA-256 over all samples and their order, 64 hex digits."""
        return _sha256([FINGERPRINT_VERSION, list(self.samples.items())])

    @cached_property
    def encoded(self) -> bytes:
        """The fingerprint as JSON. Characters of an id that are not valid UTF-8 are escaped."""
        tree = {"version": FINGERPRINT_VERSION, "hash": self.hash, "samples": dict(self.samples)}
        return (json.dumps(tree, indent=0) + "\n").encode()

    def changes_since(self, before: "Fingerprint") -> str:
        """What changed, such as "2 added ('a.png', 'b.png'), 1 removed ('c.png')"; empty if nothing did.

        A sample has changed if the bytes of its image, of its mask or of another image it needs have changed, or its
        captions, its texts, or whether it may be mirrored.
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
    """Read what `encoded` returned; None if the bytes are damaged or of another version."""
    try:
        tree = parse_json(data)
        found = Fingerprint(dict(tree["samples"]))
        return found if (tree["version"], tree["hash"]) == (FINGERPRINT_VERSION, found.hash) else None
    except (ValueError, TypeError, KeyError):  # not JSON, or of another shape
        return None


def fingerprint(placed: Sequence[BucketedSample], mask_hashes: Mapping[ImageSource, str]) -> Fingerprint:
    """The fingerprint of the samples that a run uses, held out or not. It does not depend on where the data is.

    Args:
        mask_hashes: SHA-256 of each mask in `mask_files(placed)`.
    """
    return Fingerprint({one.sample.sample_id: _sample_hash(one, mask_hashes) for one in placed})


def mask_files(placed: Sequence[BucketedSample]) -> list[ImageSource]:
    """The masks that are separate files; transparency is covered by the hash of the image."""
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
    """The first ones, quoted, so that a line break in an id does not break the line."""
    return ", ".join(map(repr, ids[:_NUM_NAMED])) + (", ..." if len(ids) > _NUM_NAMED else "")
