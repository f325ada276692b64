"""How well a model draws composed emoji: the share of images with each attribute right, with exact intervals.

The judge names what an image shows (`ldm.demos.emoji_judge`). What it can tell at all is measured first: on the true
drawings after the autoencoder's round trip (the ceiling), and with the captions of other images (the null).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image

from ldm.demos.emoji_composed import OBJECTS_FOLDER, read_held_out, read_training_scenes
from ldm.demos.emoji_judge import ATTRIBUTES, SceneJudge, agrees
from ldm.demos.emoji_scenes import KINDS, Kind, Scene, captions_of_scene, held_out_scenes
from ldm.demos.emoji_scenes_drawing import Artwork
from ldm.evaluation.metrics import exact_interval
from ldm.io.files import write_json
from ldm.io.folders import new_folder
from ldm.io.images import image_grid, image_to_tensor, tensor_to_images
from ldm.noise import choice, permutation
from ldm.pipeline.pipeline import Pipeline

BATCH = 25
NUM_SHOWN = 40


@dataclass(frozen=True)
class Prompt:
    """A caption of a scene."""

    text: str
    scene: Scene

    @property
    def names_places(self) -> bool:
        """Whether it says where the two objects of a pair are."""
        return self.scene.kind == "pair" and " and " not in self.text


def prompts_for(scenes: Sequence[Scene], plurals: Mapping[str, str]) -> list[Prompt]:
    """One of each scene's captions, drawn by key."""
    found = []
    for scene in scenes:
        captions = captions_of_scene(scene, plurals)
        found.append(Prompt(captions[choice(len(captions), "emoji test caption", captions[0])], scene))
    return found


def shares(prompts: Sequence[Prompt], seen: Sequence[Scene]) -> dict[str, dict[str, float]]:
    """By attribute, and under "all" for every attribute together: share, low, high, num_right and num_judged."""
    verdicts = [
        agrees(prompt.scene, scene, names_places=prompt.names_places)
        for prompt, scene in zip(prompts, seen, strict=True)
    ]
    for verdict in verdicts:
        verdict["all"] = all(verdict.values())
    found = {}
    for name in (*ATTRIBUTES, "all"):
        right = [verdict[name] for verdict in verdicts if name in verdict]
        if right:
            low, high = exact_interval(sum(right), len(right))
            counts = {"num_right": sum(right), "num_judged": len(right)}
            found[name] = {"share": sum(right) / len(right), "low": low, "high": high, **counts}
    return found


def judge_limits(
    judge: SceneJudge, prompts: Sequence[Prompt], kind: Kind, pipeline: Pipeline
) -> dict[str, dict[str, dict[str, float]]]:
    """The ceiling and the null: the true drawings through the autoencoder, with their own and with other captions."""
    drawings = [judge.artwork.draw(prompt.scene) for prompt in prompts]
    seen = judge.judge(round_trip(pipeline, drawings), kind)
    order = permutation(len(prompts), "emoji null", kind)
    return {
        "ceiling": shares(prompts, seen),
        "null": shares(prompts, [seen[order[(order.index(i) + 1) % len(order)]] for i in range(len(order))]),
    }


def round_trip(pipeline: Pipeline, images: Sequence[Image.Image]) -> list[Image.Image]:
    """The images after the pipeline's autoencoder has encoded them (to the mean) and decoded them."""
    autoencoder = pipeline.autoencoder
    pixels = torch.stack([image_to_tensor(image) for image in images])
    found = []
    with torch.no_grad():
        for part in torch.split(pixels, BATCH):
            mean = autoencoder.encode(part).chunk(2, dim=1)[0]
            found += tensor_to_images(autoencoder.decode(autoencoder.scale(mean)))
    return found


def score_composed_emoji(
    pipeline: Pipeline,
    data: Path,
    dest: Path,
    *,
    num_held_out: int = 120,
    num_seen: int = 40,
    kinds: Sequence[Kind] = KINDS,
    settings: Mapping[str, Any] = MappingProxyType({}),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write `report.json` and a grid for each kind of scene into `dest`, a new folder; returns the report.

    Args:
        data: the composed dataset.
        num_held_out: the most held-out combinations of each kind; always the same ones.
        num_seen: scenes of the training data of each kind.
        kinds: the kinds of scenes to score.
        settings: further arguments of `Pipeline.generate`, for all images.
        on_progress: called with (images made, images to make).

    Returns:
        For each kind: `ceiling` and `null` of the judge on the held-out scenes, and the model's `held_out` and `seen`
        shares by attribute, with exact 95 % intervals.

    Raises:
        UserError: `dest` exists, the data is incomplete, or the disk is full.
    """
    artwork = Artwork.read(data / OBJECTS_FOLDER, pipeline.defaults.height or 64)
    judge, tests = SceneJudge(artwork), _tests(artwork, data, kinds, num_held_out, num_seen)
    report: dict[str, Any] = {"weights_hash": pipeline.weights_hash, "settings": dict(settings)}
    done, total = 0, sum(len(prompts) for parts in tests.values() for prompts in parts.values())
    with new_folder(dest) as folder:
        for kind, parts in tests.items():
            report[kind] = judge_limits(judge, parts["held_out"], kind, pipeline)
            for name, prompts in parts.items():
                images = draw_prompts(pipeline, [prompt.text for prompt in prompts], settings)
                report[kind][name] = shares(prompts, judge.judge(images, kind))
                _grid(images, prompts).save(folder / f"{kind}-{name.replace('_', '-')}.png")
                done += len(images)
                on_progress(done, total)
        write_json(folder / "report.json", report)
    return report


def draw_prompts(
    pipeline: Pipeline, prompts: Sequence[str], settings: Mapping[str, Any] = MappingProxyType({})
) -> list[Image.Image]:
    """One image for each prompt; the image for prompt number i has seed i."""
    seeds = range(len(prompts))
    return list(pipeline.generate(prompts, seeds=list(seeds), batch_size=BATCH, **settings).images)


def _tests(
    artwork: Artwork, data: Path, kinds: Sequence[Kind], num_held_out: int, num_seen: int
) -> dict[Kind, dict[str, list[Prompt]]]:
    """The prompts of each kind: `held_out` and `seen`."""
    objects = list(artwork.objects.values())
    plurals = {one.noun: one.plural for one in objects}
    held_out = read_held_out(data)
    found: dict[Kind, dict[str, list[Prompt]]] = {}
    for kind in kinds:
        known = read_training_scenes(data, kind)
        order = permutation(len(known), "emoji seen", kind)[:num_seen]
        scenes = held_out_scenes(held_out, kind, objects)[:num_held_out]
        found[kind] = {
            "held_out": prompts_for(scenes, plurals),
            "seen": prompts_for([known[index] for index in order], plurals),
        }
    return found


def _grid(images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> Image.Image:
    shown = [image.resize((2 * image.width, 2 * image.height)) for image in images[:NUM_SHOWN]]
    return image_grid(shown, num_columns=8, captions=[prompt.text for prompt in prompts[:NUM_SHOWN]])
