"""The pictures for a card, drawn by the model itself with its own settings."""

from collections.abc import Sequence

from ldm.config import read_yaml
from ldm.export.card.samples import SamplePicture
from ldm.export.export_source import ExportSource
from ldm.pipeline.pipeline import Pipeline

PROMPTS = (
    "a red apple", "a cat", "a rocket", "a sunflower", "a slice of pizza", "a house", "a butterfly", "a guitar",
)  # fmt: skip
"""For a model of which nothing is known."""


def draw_samples(source: ExportSource, number: int) -> list[SamplePicture]:
    """So many pictures: of the prompts that its run drew previews of, else of the model's new word, else of PROMPTS.

    The first round of prompts has the image seed 0, the next one 1.

    Raises:
        UserError: the run's settings are damaged.
    """
    if number < 1:
        return []
    prompts = sample_prompts(source)[:number]
    num_rounds = -(-number // len(prompts))
    pipeline = Pipeline(source.parts, model_id=source.model_id, folder=source.folder)
    made = pipeline.generate(prompts, seed=0, num_images=num_rounds)
    order = [prompt * num_rounds + turn for turn in range(num_rounds) for prompt in range(len(prompts))]
    return [
        SamplePicture(prompts[index // num_rounds], made.images[index], made.settings[index])
        for index in order[:number]
    ]


def sample_prompts(source: ExportSource) -> Sequence[str]:
    """What to draw; at least one prompt."""
    settings = read_yaml(source.run / "config.yaml") if source.run else {}
    if found := (settings.get("preview") or {}).get("prompts"):
        return [str(prompt) for prompt in found]
    if source.adapter is not None and source.adapter.kind == "embedding":
        return [f"a picture of {source.adapter.settings['token']}"]
    return PROMPTS
