"""The candidates of a tournament: checkpoints, averages and settings of images, and the features of what they make."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluation.clip_score import clip_scores
from ldm.evaluation.evaluation_job import CHUNK, Chunk, EvaluationJob, Judge, Measurer, keep, one_thread
from ldm.evaluation.features import text_hash
from ldm.evaluation.kernel_distance import cubic_kernel, distance_and_scores
from ldm.evaluation.paired import Scores
from ldm.evaluation.tournament import STEP
from ldm.io.files import read_tensors
from ldm.pipeline.pipeline import Pipeline, load_pipeline

Metric = Literal["kid", "clip", "judge"]
BETTER: dict[Metric, Literal["lower", "higher"]] = {"kid": "lower", "clip": "higher", "judge": "higher"}
assert STEP == CHUNK, "images are made in chunks"
MAX_IMAGES = 100_000
"""Of one candidate."""
NUM_SHOWN = 8
"""Images of each candidate on the page, all with the same seeds."""


@dataclass(frozen=True)
class Candidate:
    """A model with settings of its images.

    Attributes:
        source: a checkpoint, or a model.
        name: of the run or the model.
        step: of the checkpoint, or None.
        weights: which of the checkpoint: "average", "trained" or a width; None for a model.
        settings: guidance_scale and num_inference_steps, as far as they are given.
    """

    source: str
    name: str
    step: int | None = None
    weights: str | None = None
    settings: tuple[tuple[str, float], ...] = ()

    @property
    def model(self) -> tuple[str, str | None]:
        """Equal for candidates that differ only in settings."""
        return self.source, self.weights

    @property
    def label(self) -> str:
        """All that tells it apart from others."""
        parts = [self.name] + ([] if self.step is None else [f"step {self.step}"])
        parts += [] if self.weights in (None, "average") else [str(self.weights)]
        words = {"guidance_scale": "guidance", "num_inference_steps": "steps"}
        return ", ".join(parts + [f"{words.get(name, name)} {value:g}" for name, value in self.settings])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "settings": dict(self.settings), "label": self.label}


OpenModel = Callable[[Candidate], AbstractContextManager[str]]
"""Gives the place of a candidate's model, for as long as it is open."""


class Contest:
    """The images of all candidates, as far as they are made; only their features and a few thumbnails are kept.

    Args:
        job: what all candidates share; it names no model.
        open_model: where a candidate's model is.
        judge: for the metric judge.
        on_progress: called with the number of images that all candidates have made.

    Raises:
        UserError: as `Measurer`; or the candidates' features cannot be compared.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        job: EvaluationJob,
        metric: Metric,
        open_model: OpenModel,
        judge: Judge | None = None,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        self.candidates, self.job, self.metric = candidates, job, metric
        self.open_model, self.judge, self.on_progress = open_model, judge, on_progress
        self.num_made: dict[int, int] = {}
        self.plan: dict[str, Any] = {}

    def job_of(self, index: int) -> EvaluationJob:
        """What one candidate makes, in a folder of its own."""
        settings = {**self.job.settings, **dict(self.candidates[index].settings)}
        if "num_inference_steps" in settings:
            settings["num_inference_steps"] = int(settings["num_inference_steps"])
        name = text_hash(json.dumps(self.candidates[index].to_dict()))
        return replace(self.job, settings=settings, folder=self.job.folder / "candidates" / name)

    def make(self, wanted: Mapping[int, int]) -> None:
        """Make the images of each candidate up to a number; each model is loaded once."""
        for model in dict.fromkeys(self.candidates[index].model for index in wanted):
            mine = [index for index in wanted if self.candidates[index].model == model]
            with self.open_model(self.candidates[mine[0]]) as place:
                pipeline = load_pipeline(place, device=self.job.device, dtype=self.job.dtype)
                for index in mine:
                    self._make(index, wanted[index], pipeline)

    def _make(self, index: int, num_images: int, pipeline: Pipeline) -> None:
        measurer = Measurer(self.job_of(index), pipeline, self.judge)
        self._check_alike(measurer)
        measurer.job.path(Chunk("generated", 0, 0, STEP)).parent.mkdir(parents=True, exist_ok=True)
        if self.metric == "kid":
            self._make_reference(measurer)
        for chunk in generated_chunks(num_images):
            measurer.keep(chunk)
        self.num_made[index] = num_images
        self.on_progress(sum(self.num_made.values()))

    def _check_alike(self, measurer: Measurer) -> None:
        """Refuse candidates whose measurements cannot be compared."""
        extractor, size = measurer.extractor.to_dict(), measurer.size
        self.plan = self.plan or {"features": extractor, "size": size, "reference": self.job.reference_hash}
        if size != self.plan["size"]:
            raise UserError("the candidates make images of different sizes", "give --height and --width")
        if self.metric == "kid" and extractor != self.plan["features"]:
            raise UserError(
                "the candidates have different autoencoders, whose features cannot be compared",
                "choose --features inception, or the folder of a CLIP or DINOv2 model",
            )

    def _make_reference(self, measurer: Measurer) -> None:
        """The features of the reference are the same for all, so the candidate that plays first makes them."""
        for chunk in self._reference_chunks:
            self.job.path(chunk).parent.mkdir(parents=True, exist_ok=True)
            keep(self.job.path(chunk), self.plan, partial(measurer.chunk, chunk), measurer.pipeline.device)

    @property
    def _reference_chunks(self) -> list[Chunk]:
        return [chunk for chunk in self.job.chunks if chunk.kind == "reference"]

    def scores(self, index: int, num_images: int) -> Scores:
        """The measurement of a candidate's first images, with what each contributes."""
        found = self.features(index, num_images)
        with one_thread(torch.device("cpu")):
            if self.metric == "kid":
                return distance_and_scores(found["features"].double(), self.reference, cubic_kernel)[1]
            if self.metric == "clip":
                return Scores.of_mean(clip_scores(found["clip_images"], found["clip_texts"]))
            return Scores.of_mean(found["judged"])

    def features(self, index: int, num_images: int) -> dict[str, Tensor]:
        """What was kept of a candidate's first images, in order."""
        job = self.job_of(index)
        parts = [read_tensors(job.path(chunk)) for chunk in generated_chunks(num_images)]
        return {name: torch.cat([part[name] for part in parts if name in part]) for name in parts[0]}

    @cached_property
    def reference(self) -> Tensor:
        """[M, d]"""
        parts = [read_tensors(self.job.path(chunk))["features"] for chunk in self._reference_chunks]
        return torch.cat(parts).double()


def generated_chunks(num_images: int) -> list[Chunk]:
    """The first chunks of a candidate; `num_images` is a multiple of `STEP`."""
    return [
        Chunk("generated", number, start, start + STEP)
        for number, start in enumerate(range(0, num_images, STEP))
    ]
