"""What is done with what the files of samples say about rights: shown in the data report, obeyed by a run."""

from dataclasses import replace
from typing import Literal

from ldm.data.rights import COPYRIGHTS
from ldm.data.sample import ImageInfo, Refusal, Sample, refusal_of
from ldm.errors import UserError

Reserved = Literal["report", "leave_out", "refuse"]
"""What is done with images whose files reserve AI training."""


def with_rights(sample: Sample, facts: ImageInfo | Refusal) -> tuple[Sample, ImageInfo | Refusal]:
    """A sample and its facts with what its file says: notes, and the fields of rights beside those of its row."""
    if isinstance(facts, Refusal):
        return sample, facts
    rights = facts.rights
    named = {
        f"{name} ({'copyright' if name in COPYRIGHTS else 'licence'} in the file)": text
        for name, text in rights.licences.items()
    }
    sample = replace(sample, extra={**sample.extra, **named}) if named else sample
    return sample, replace(facts, notes=(*facts.notes, *rights.notes)) if rights.notes else facts


def reservation(sample: Sample, facts: ImageInfo | Refusal) -> Refusal | None:
    """The refusal of a sample whose image reserves AI training; None if it does not, or is refused anyway."""
    if isinstance(facts, Refusal) or not facts.rights.reserved:
        return None
    what = f"{sample.image.name}: its file reserves AI training ({facts.rights.reserved})"
    return refusal_of(sample.sample_id, UserError(what, "ask for permission, or leave it out"))
