"""The embedded model's card, with numbers from the reports of the runs that made it."""

from pathlib import Path
from typing import Any

from ldm.export.card.front_matter import metadata_yaml
from ldm.export.card.markdown import render
from ldm.export.card.training_facts import Measurement
from ldm.io.json_files import read_json

TEMPLATE = Path(__file__).with_name("emoji_card.md.jinja")
EVALUATE = (
    "python scripts/evaluate_emoji.py --model emoji --data data/emoji-64 --output runs/emoji/evaluation"
)


def emoji_card(runs: Path) -> str:
    """The README.md of the model that `make_emoji_model.sh` made in `runs`.

    Raises:
        UserError: a report is missing.
    """
    autoencoder = read_json(runs / "autoencoder" / "report.json")
    text_encoder = read_json(runs / "text_encoder" / "report.json")
    evaluation = read_json(runs / "evaluation" / "report.json")
    metadata = metadata_yaml(
        license="mit",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        language="en",
        tags=["text-to-image", "latent-diffusion", "emoji"],
    )
    return render(
        TEMPLATE,
        front_matter=metadata,
        num_images=evaluation["recall"]["num_training_images"],
        measurements=_measurements(autoencoder, text_encoder, evaluation),
    )


def _measurements(
    autoencoder: dict[str, Any], text_encoder: dict[str, Any], evaluation: dict[str, Any]
) -> list[Measurement]:
    held_out, recall = autoencoder["held_out"], evaluation["recall"]
    found = text_encoder["train"]
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
        *(
            Measurement(
                f"recall: the caption's own image is the nearest training image (RMS at 32 px), top {best}",
                f"{share['share']:.2f} [{share['low']:.2f}, {share['high']:.2f}] of {share['num_judged']} captions",
                EVALUATE,
            )
            for best, share in ((1, recall["top_1"]), (5, recall["top_5"]))
        ),
    ]
