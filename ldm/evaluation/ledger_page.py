"""The ledger as one HTML page: what is flagged, with thumbnails and the reason."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.data.sample import Sample
from ldm.errors import UserError
from ldm.evaluation.evaluation_page import Shown, render, shown
from ldm.evaluation.loss_ledger import REASONS, Entry, ranked
from ldm.io.files import write_bytes

MAX_SHOWN = 60
"""Of each reason."""


def write_ledger_page(
    path: Path, facts: Mapping[str, Any], entries: Sequence[Entry], samples: Mapping[str, Sample]
) -> Path:
    """Write the page; returns its path.

    Args:
        samples: where the images are read from, by id.
    """
    sections = [
        {
            "title": reason,
            "words": REASONS[reason],
            "count": len(found),
            "figures": list(_figures(found[:MAX_SHOWN], samples)),
        }
        for reason, found in ranked(entries).items()
    ]
    write_bytes(path, render("ledger.html.jinja", facts=facts, sections=sections).encode())
    return path


def _figures(entries: Sequence[Entry], samples: Mapping[str, Sample]) -> Iterator[Shown]:
    for each in entries:
        lines: tuple[str, ...] = (
            each.sample_id,
            each.caption,
            f"loss {each.loss:.4f} +- {each.stderr:.4f}",
            f"own caption minus others {each.caption_gap:+.4f} +- {each.caption_gap_stderr:.4f}",
        )
        if each.duplicate_of:
            lines += (f"like {each.duplicate_of}",)
        try:
            yield shown(samples[each.sample_id].open(), *lines)
        except UserError as error:  # the file has gone meanwhile
            yield Shown("", 0, 0, (*lines, str(error)))
