"""What a model is for, and what to beware of: in general, and by what is known of its data."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

from ldm.export.card.subject import CardSubject
from ldm.export.card.training import memorisation_of

FEW_PICTURES = 2000


def intended_use(subject: CardSubject) -> str:
    """The section "Intended use"."""
    defaults = subject.source.parts.defaults
    return (
        f"Pictures of {defaults.width} x {defaults.height} px of the kind that it was trained on, from prompts in the "
        "manner of its captions; for work with diffusion models, for study and for play. It is not meant to depict "
        "real people without their consent, to deceive, or to decide anything about anyone."
    )


def risks(subject: CardSubject) -> str:
    """The section "Limits and risks", a list."""
    report = subject.run.data_report if subject.run else None
    found = [*_of_the_data(report or {}), _memorisation(subject)]
    if subject.base is not None:
        found.append(
            "It inherits what its base model does wrong, and the terms of the base's licence hold for it."
        )
    found += [
        "What its training pictures lack or show one-sidedly, its pictures do too.",
        "Sizes other than its own, long prompts and writing in pictures were not examined.",
        "There is no safety checker: look at pictures before you show them to others.",
    ]
    return "\n".join(f"- {line}" for line in found)


def _of_the_data(report: Mapping[str, Any]) -> list[str]:
    found = []
    used = report.get("num_used", 0) - report.get("num_repeats", 0)
    if 0 < used < FEW_PICTURES:
        found.append(f"It was trained on {used:,} pictures only: it knows what they show, and little beside.")
    groups = [*report.get("exact_duplicates", ()), *report.get("near_duplicates", ())]
    if alike := set(chain.from_iterable(groups)):
        found.append(
            f"{len(alike):,} of the training pictures are the same or look alike; such are memorised most easily."
        )
    without = (report.get("licences") or {}).get("num_without", 0)
    if without:
        found.append(
            f"The data names no licence for {without:,} of the pictures: their rights are not known here."
        )
    return found


def _memorisation(subject: CardSubject) -> str:
    measured = memorisation_of(subject.run)
    if measured is None and subject.source_card is not None:
        return "What its own card says of its data and its limits stands below."
    if measured is None:
        return "How much of its training pictures it repeats was not measured."
    share, number = measured["top_1"], measured.get("num_training_images")
    among = f" among {number:,}" if isinstance(number, int) else ""
    return (
        f"Memorisation was measured: for {share['share']:.1%} of {share['num_judged']:,} training captions, the "
        f"training picture that comes nearest to the picture made{among} is the caption's own. Near 100 %, take its "
        "pictures for copies."
    )
