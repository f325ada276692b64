"""Images that were made, checked for safety: flagged in their record, or not written."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ldm.errors import UserError, warn
from ldm.io.messages import count
from ldm.pipeline.settings import MadeImage
from ldm.provenance.safety import SafetyChecker

_MOST_NAMED = 3


def checked(made: MadeImage, name: str, checker: SafetyChecker) -> MadeImage | None:
    """An image whose record says what the classifier found; None if it is refused.

    Args:
        name: of its file.

    Warns:
        LdmWarning: it is flagged and not refused.
    """
    note = checker.note(made.image)
    if note.flagged and checker.refuses:
        return None
    if note.flagged:
        warn(f"{name} may be unsafe to show (score {note.score:.2f} of {note.classifier})")
    return replace(made, record=made.record.model_copy(update={"safety": note}))


def refusal(paths: Sequence[Path], num_images: int) -> UserError:
    """The error of a call that did not write some of its images."""
    named = ", ".join(path.name for path in paths[:_MOST_NAMED]) + (
        ", ..." if len(paths) > _MOST_NAMED else ""
    )
    what = (
        f"{len(paths)} of {count(num_images, 'image')} may be unsafe to show and were not written ({named})"
    )
    return UserError(what, "change the prompt or the seed, or use --safety flag to keep them, flagged")
