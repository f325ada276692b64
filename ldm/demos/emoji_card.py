"""The embedded model's card, its numbers taken from the reports of the runs that made it."""

from pathlib import Path
from typing import Any

from ldm.export.card.layout import Card, Measurement, measurement_table
from ldm.io.files import read_json

EVALUATE = (
    "python scripts/evaluate_emoji.py --model emoji --data data/emoji-64 --output runs/emoji/evaluation"
)

SUMMARY = (
    "A small latent diffusion model that draws single emoji-like objects, animals, foods and faces from short English "
    "prompts. It is embedded in OpenLDM so that the first command works without a network and without a GPU. It is a "
    "stock `StableDiffusionPipeline`."
)
USAGE = """```bash
ldm generate "a red apple"
```

```python
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("ldm/assets/emoji", safety_checker=None)
pipe("red apple", height=64, width=64, num_inference_steps=20, guidance_scale=2.0).images[0]
```"""
DATA = (
    "Pictures: Microsoft's Fluent emoji (3D), MIT, from the npm package `@lobehub/fluent-emoji-3d`. Captions: the CLDR "
    "names and tags of `emojibase-data`, MIT. The autoencoder was trained on all of them without skin-tone variants, "
    "the denoiser and the text encoder on {num_images} clear objects, animals, foods and faces, without people, "
    "flags, letters and clocks. A picture has up to four captions: its name, with an article, and with tags."
)
LIMITS = (
    "The training set is small and the model is meant to recall it: a known name gives a picture close to its training "
    "picture, and the recall above measures just that. New combinations (`unseen.png` of the evaluation) mostly fail: "
    "one of the two things is drawn, or a mixture. Prompts are English, short and concrete; people, writing and "
    "scenes were not in the data."
)


def emoji_card(runs: Path) -> Card:
    """The card of the model made below `runs`, where `make_emoji_model.sh` put its runs.

    Raises:
        UserError: a report is missing.
    """
    autoencoder = read_json(runs / "autoencoder" / "report.json")
    text_encoder = read_json(runs / "text_encoder" / "report.json")
    evaluation = read_json(runs / "evaluation" / "report.json")
    return Card(
        title="OpenLDM emoji",
        summary=SUMMARY,
        front_matter={
            "license": "mit",
            "library_name": "diffusers",
            "pipeline_tag": "text-to-image",
            "language": "en",
            "tags": ["text-to-image", "latent-diffusion", "emoji"],
        },
        sections={
            "Use": USAGE,
            "Data": DATA.format(num_images=evaluation["recall"]["num_training_images"]),
            "Measured": measurement_table(_measurements(autoencoder, text_encoder, evaluation)),
            "Limits": LIMITS,
        },
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
                f"recall: nearest training image (RMS at 32 px) of a generated one is its caption's own, top {best}",
                f"{share['share']:.2f} [{share['low']:.2f}, {share['high']:.2f}] of {share['num_judged']} captions",
                EVALUATE,
            )
            for best, share in ((1, recall["top_1"]), (5, recall["top_5"]))
        ),
    ]
