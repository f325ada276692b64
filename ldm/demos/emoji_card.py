"""The embedded model's card, with numbers from the reports of the runs that made it."""

from pathlib import Path
from typing import Any

from ldm.export.card.evaluations import AUDIT, Measurement, copies_of, copies_row
from ldm.export.card.front_matter import metadata_yaml
from ldm.export.card.markdown import render
from ldm.io.json_files import read_json

TEMPLATE = Path(__file__).with_name("emoji_card.md.jinja")
EDIT_TEMPLATE = Path(__file__).with_name("emoji_edit_card.md.jinja")
FAST_TEMPLATE = Path(__file__).with_name("emoji_fast_card.md.jinja")
EVALUATE = (
    "python scripts/evaluate_emoji.py --model {model} --data data/emoji-64 --output runs/emoji/evaluation"
)
SCORE = (
    "python scripts/score_composed_emoji.py --model {model} --data data/emoji-composed-64 "
    "--kinds colour count pair --output runs/emoji/composed-score"
)
SCENES = {"colour": "objects in colours", "count": "numbers of objects", "pair": "pairs of objects"}


def emoji_card(runs: Path, *, composed: bool = False) -> str:
    """The README.md of the model that `make_emoji_model.sh` made in `runs`.

    Args:
        composed: of the model that `make_composed_emoji_model.sh` trained further. Its card has no numbers of the
            first text encoder, which it changed.

    Raises:
        UserError: a report is missing.
    """
    evaluation = read_json(runs / ("composed-evaluation" if composed else "evaluation") / "report.json")
    if composed:
        measurements = _recall(evaluation) + _scenes(read_json(runs / "composed-score" / "report.json"))
    else:
        autoencoder = read_json(runs / "autoencoder" / "report.json")
        text_encoder = read_json(runs / "text_encoder" / "report.json")
        measurements = _parts(autoencoder, text_encoder) + _recall(evaluation)
    measurements += _copies(read_json(runs / "copies" / AUDIT))
    return render(
        TEMPLATE,
        front_matter=_front_matter("text-to-image"),
        num_images=evaluation["recall"]["num_training_images"],
        measurements=measurements,
        composed=composed,
    )


def emoji_edit_card(runs: Path) -> str:
    """The README.md of the model that `make_emoji_edit_model.sh` made in `runs`.

    Raises:
        UserError: a report is missing.
    """
    report = read_json(runs / "edit-score" / "report.json")
    return render(EDIT_TEMPLATE, front_matter=_front_matter("image-to-image"), measurements=_edits(report))


def emoji_fast_card(runs: Path) -> str:
    """The README.md of the adapter that `make_emoji_fast_model.sh` made in `runs`.

    Raises:
        UserError: a report is missing.
    """
    measurements = _recall(read_json(runs / "lcm-evaluation" / "report.json"), "emoji-fast")
    measurements += _scenes(read_json(runs / "lcm-score" / "report.json"), "emoji-fast")
    return render(FAST_TEMPLATE, front_matter=_front_matter("text-to-image"), measurements=measurements)


def _front_matter(tag: str) -> str:
    return metadata_yaml(
        license="mit",
        library_name="diffusers",
        pipeline_tag=tag,
        language="en",
        tags=[tag, "latent-diffusion", "emoji"],
    )


def _edits(report: dict[str, Any]) -> list[Measurement]:
    """The held-out edits that are right, all and by kind, and the seen ones."""
    parts = {"held_out": "edits that never occur in training", "seen": "edits of the training data"}
    return [
        Measurement(f"{what}: {kind}", _share_of(share["all"]), report["command"])
        for part, what in parts.items()
        for kind, share in report["scores"][part].items()
    ]


def _share_of(share: dict[str, Any]) -> str:
    return f"{share['share']:.2f} [{share['low']:.2f}, {share['high']:.2f}] of {share['num_judged']} images"


def _parts(autoencoder: dict[str, Any], text_encoder: dict[str, Any]) -> list[Measurement]:
    held_out, found = autoencoder["held_out"], text_encoder["train"]
    return [
        Measurement(
            f"autoencoder, {held_out['num_images']} held-out images",
            f"PSNR {held_out['psnr_db']:.1f} dB, SSIM {held_out['ssim']:.3f}",
            "ldm train configs/emoji/autoencoder.yaml",
        ),
        Measurement(
            f"text encoder, recall at 1 among the {found['num_images']} training images",
            f"image to text {found['image_to_text_recall_at_1']:.2f}, "
            f"text to image {found['text_to_image_recall_at_1']:.2f}",
            "ldm train configs/emoji/text_encoder.yaml",
        ),
    ]


def _recall(evaluation: dict[str, Any], model: str = "emoji") -> list[Measurement]:
    recall = evaluation["recall"]
    return [
        Measurement(
            f"recall: the caption's own image is the nearest training image (RMS at 32 px), top {best}",
            f"{share['share']:.2f} [{share['low']:.2f}, {share['high']:.2f}] of {share['num_judged']} captions",
            EVALUATE.format(model=model),
        )
        for best, share in ((1, recall["top_1"]), (5, recall["top_5"]))
    ]


def _copies(audit: dict[str, Any]) -> list[Measurement]:
    """The output of `ldm audit memorisation emoji --data data/emoji-64 --output runs/emoji/copies`."""
    copies = copies_of(audit)
    return [copies_row(copies, "emoji", "data/emoji-64")] if copies else []


def _scenes(score: dict[str, Any], model: str = "emoji") -> list[Measurement]:
    return [
        Measurement(
            f"{what} that never occur in training: {attribute} right",
            _share_of(share),
            SCORE.format(model=model),
        )
        for kind, what in SCENES.items()
        for attribute, share in score[kind]["held_out"].items()
    ]
