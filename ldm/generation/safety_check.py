"""Images that were made, checked for safety: flagged in their record, or not written."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ldm.errors import UserError, warn
from ldm.io.messages import count
from ldm.pipeline.settings import MadeImage
from ldm.provenance.safety import Safety, SafetyChecker

_MOST_NAMED = 3


def with_note(made: MadeImage, checker: SafetyChecker) -> MadeImage:
    """An image whose record says what the classifier found."""
    return replace(made, record=made.record.model_copy(update={"safety": checker.note(made.image)}))


def may_be_written(made: MadeImage, path: Path, safety: Safety) -> bool:
    """Whether an image with a note is written.

    Warns:
        LdmWarning: it is flagged, and written all the same.
    """
    note = made.record.safety
    if note is None or not note.flagged:
        return True
    if not safety.refuses:
        warn(f"{path.name} may be unsafe to show (score {note.score:.2f} of {note.classifier})")
    return not safety.refuses


def refusal(paths: Sequence[Path], num_images: int) -> UserError:
    """The error of a call that did not write some of its images."""
    named = ", ".join(path.name for path in paths[:_MOST_NAMED]) + (
        ", ..." if len(paths) > _MOST_NAMED else ""
    )
    what = (
        f"{len(paths)} of {count(num_images, 'image')} may be unsafe to show and were not written ({named})"
    )
    return UserError(what, "change the prompt or the seed, or use --safety flag to keep them, flagged")
