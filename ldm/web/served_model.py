"""The models of a server, as clients are told of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from ldm.models.generation_settings import GenerationSettings
from ldm.pipeline.pipeline import Pipeline
from ldm.tasks import TASKS


@dataclass(frozen=True)
class ServedLora:
    """A LoRA that a model was given with."""

    name: str
    weight: float


@dataclass(frozen=True)
class ServedModel:
    """What clients are told about a model.

    Attributes:
        name: what clients call it: its id, which records have, with a number if two models have the same.
        task: that it was trained for.
        defaults: its own, completed with those of all settings.
        told: inputs besides a prompt that the model takes; see `Setting.told`.
        controls: the kinds of control images that it takes.
        has_references: whether it takes images as prompts.
        has_refiner: whether a second model finishes its images.
        number: its place among the models of the server, from 0.
    """

    name: str
    weights_hash: str | None
    task: str
    defaults: GenerationSettings
    told: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    has_references: bool = False
    has_refiner: bool = False
    loras: tuple[ServedLora, ...] = ()
    number: int = 0

    @property
    def title(self) -> str:
        """Such as `emoji [c3a1f0b2d4]`, as A1111 names models."""
        return f"{self.name} [{self.weights_hash[:10]}]" if self.weights_hash else self.name

    def task_of(self, given: Sequence[str]) -> str | None:
        """What the model does with these images; None if it has no use for them."""
        able = (task for task in TASKS.values() if task.trained_as == self.task)
        return next((task.name for task in able if set(task.given) == set(given)), None)


def describe(pipeline: Pipeline, loras: Sequence[ServedLora] = (), *, number: int = 0) -> ServedModel:
    """What clients are told about a pipeline's model."""
    parts, kind = pipeline.parts, type(pipeline.defaults)
    return ServedModel(
        pipeline.model_id,
        pipeline.weights_hash,
        parts.task,
        pipeline.defaults.over(kind()),
        tuple(pipeline.told),
        tuple(parts.controls),
        parts.image_prompts is not None,
        pipeline.refiner is not None,
        tuple(loras),
        number,
    )


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names, with a number at those that came before: `one`, `one-2`."""
    found: list[str] = []
    for name in names:
        choices = (name if number == 1 else f"{name}-{number}" for number in count(1))
        found.append(next(each for each in choices if each not in found))
    return found
