"""Measurements of images that are generated during training, from the captions of held-out samples.

Prompts, seeds and batches are always the same, so two measurements differ only through the weights, and can be compared
image by image. Each process makes every n-th batch; the numbers do not depend on how many processes there are.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldm.data.batches import ImageTransform
from ldm.data.captions import plain_caption
from ldm.data.prepare import BucketedSample
from ldm.demos.shapes_judge import follows, is_caption
from ldm.errors import LdmWarning, UserError
from ldm.evaluation.clip_score import clip_scores
from ldm.evaluation.evaluation_job import one_thread, prompts_in_order
from ldm.evaluation.features import Extractor, folder_features, load_extractor
from ldm.evaluation.intervals import LEAST_SAMPLES, Estimate, mean_interval
from ldm.evaluation.kernel_distance import cubic_kernel, distance_and_scores
from ldm.evaluation.metrics import exact_interval
from ldm.evaluation.paired import Scores
from ldm.io.images import image_to_tensor, tensor_to_images
from ldm.noise import permutation
from ldm.pipeline.pipeline import Pipeline

from ..loop.denoiser_loss import DenoiserLoss
from ..loop.state import TrainState
from ..loop.validation import evaluating, summed
from ..settings.denoiser import DenoiserSettings
from .best import MEASURES
from .preview import PreviewInputs, generate_with_inputs, on_device
from .run import Run

BATCH = 8
"""Images made at once."""
Given = Callable[[Sequence[BucketedSample]], Mapping[str, Tensor]]
"""What a task is given besides the prompts, for samples of one size."""


class ImageEvaluation:
    """Generates images and measures them; every process calls it with whole weights.

    KID against the held-out images if there are at least `LEAST_SAMPLES`; the CLIP score if a CLIP model is named; the
    share of images that show what the caption says if all captions are of drawn shapes.

    Args:
        held_out: of one size if the task is given images.
        size: height and width of the images in pixels.
        given: what the task is given besides the prompts.

    Raises:
        UserError: the measurement that decides cannot be made, or an extractor cannot be loaded.
    """

    def __init__(
        self,
        run: Run,
        settings: DenoiserSettings,
        loss: DenoiserLoss,
        held_out: Sequence[BucketedSample],
        size: tuple[int, int],
        given: Given,
    ) -> None:
        self.run, self.settings, self.loss, self.held_out = run, settings, loss, held_out
        self.size, self.given = size, given
        captions = [plain_caption(one.sample, settings.captions) for one in held_out]
        self.num_images = settings.validation.num_images
        self.prompts = prompts_in_order(captions, self.num_images)
        self.judges = all(is_caption(caption) for caption in captions)
        self.has_distance = len(held_out) >= LEAST_SAMPLES
        self._check_decider()
        parts = loss.parts
        self.extractor = load_extractor(settings.validation.features, parts.autoencoder, run.device)
        self.clip = self._load_clip() if settings.validation.clip else None

    def _check_decider(self) -> None:
        decider = self.settings.validation.decider
        if not (self.has_distance or self.judges or self.settings.validation.clip):
            raise UserError(
                f"validation.evaluate_every with {len(self.held_out)} held-out images measures nothing",
                f"KID needs {LEAST_SAMPLES} or more: raise data.holdout_fraction, or set validation.clip",
            )
        if decider == "kid" and not self.has_distance:
            raise UserError(
                f"validation.keep_best = kid with {len(self.held_out)} held-out images",
                f"KID needs {LEAST_SAMPLES} or more: raise data.holdout_fraction",
            )
        if decider == "judge" and not self.judges:
            raise UserError(
                "validation.keep_best = judge, but not all captions are of drawn shapes",
                "choose loss, kid or clip",
            )

    def _load_clip(self) -> Extractor:
        folder = str(self.settings.validation.clip)
        clip = folder_features(Path(folder).expanduser(), self.run.device)
        if clip.clip is None:
            raise UserError(
                f"validation.clip = {folder} has no text encoder", "name the folder of a CLIP model"
            )
        return clip

    def __call__(self, state: TrainState) -> dict[str, float | Scores]:
        """The numbers of a row, with the scores of each measurement."""
        parts, device = self.loss.parts, self.run.device
        with (
            state.average.applied(),
            on_device(parts, device),
            evaluating(parts.denoiser),
            evaluating(parts.text_encoder),
            torch.no_grad(),
        ):
            measured = self._gathered(self.num_images, self._measured_batch, self.run.on_evaluated)
            reference = self._reference if self.has_distance else None
        features, clip, judged = measured[:, :-2], measured[:, -2], measured[:, -1]
        found: dict[str, float | Scores] = {"num_images": self.num_images}
        with one_thread(torch.device("cpu")):
            if reference is not None:
                distance, scores = distance_and_scores(features, reference, cubic_kernel)
                found |= _row("kid", distance.interval(), scores)
            if self.clip is not None:
                found |= _row("clip_score", mean_interval(clip), Scores.of_mean(clip))
            if self.judges:
                right, total = int(judged.sum()), len(judged)
                share = Estimate(right / total, *exact_interval(right, total))
                found |= _row("judge", share, Scores.of_mean(judged))
        return found

    @cached_property
    def _reference(self) -> Tensor:
        """[M, d]: the features of the held-out images."""
        return self._gathered(len(self.held_out), self._reference_batch)

    def _gathered(
        self,
        total: int,
        make: Callable[[range], Tensor],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Tensor:
        """The rows that `make` gives for 0 .. total, each batch by one process; a sharded network runs on all of them.

        Adding zeros of the other processes changes nothing, so the rows are the same for any number of processes.
        """
        processes = self.run.processes
        rows: Tensor | None = None
        batches = [range(start, min(start + BATCH, total)) for start in range(0, total, BATCH)]
        for number, batch in enumerate(batches):
            if self.run.sharded or number % processes.num_processes == processes.rank:
                made = make(batch).double()
                rows = torch.zeros(total, made.shape[1], dtype=torch.float64) if rows is None else rows
                rows[batch.start : batch.stop] = made
            on_progress(batch.stop, total)
        if processes.num_processes == 1 or self.run.sharded:
            assert rows is not None
            return rows
        if rows is None:  # fewer batches than processes
            rows = torch.zeros(total, make(batches[0]).shape[1], dtype=torch.float64)
        return summed(rows, self.run.device, processes)

    def _measured_batch(self, batch: range) -> Tensor:
        """[b, d + 2]: the features of generated images, their CLIP score, and whether the judge agrees; NaN without."""
        images = self._generate(batch)
        pixel_values = torch.stack([image_to_tensor(image) for image in images])
        prompts = self.prompts[batch.start : batch.stop]
        clip = judged = torch.zeros(len(batch), dtype=torch.float64)
        if self.clip is not None and self.clip.clip is not None:
            clip = clip_scores(self.clip(pixel_values), self.clip.clip.of_texts(prompts).float().cpu())
        if self.judges:
            judged = torch.tensor(follows(prompts, images), dtype=torch.float64)
        return torch.cat([self.extractor(pixel_values).double(), clip[:, None], judged[:, None]], dim=1)

    def _generate(self, batch: range) -> list[Image.Image]:
        """Images of the prompts with these numbers; image i has the seed i."""
        preview, parts = self.settings.preview_settings, self.loss.parts
        prompts = self.prompts[batch.start : batch.stop]
        if self.loss.task.inputs.images:
            order = permutation(len(self.held_out), "evaluation prompts")  # as `prompts_in_order`
            shown = [self.held_out[order[i % len(order)]] for i in batch]
            inputs = PreviewInputs(prompts, self.given(shown))
            return generate_with_inputs(
                parts, self.loss.task, preview, inputs, self.run.device, first_seed=batch.start
            )
        height, width = self.size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LdmWarning)  # previews say the same, once
            made = Pipeline(parts, model_id="evaluation").generate(
                prompts,
                seeds=list(batch),
                batch_size=BATCH,
                num_inference_steps=preview.num_inference_steps,
                guidance_scale=preview.guidance_scale,
                height=height,
                width=width,
                progress=False,
            )
        return made.images

    def _reference_batch(self, batch: range) -> Tensor:
        transform = ImageTransform(*self.size)
        pixels = torch.stack([transform(self.held_out[i].sample) for i in batch])
        rounded = [image_to_tensor(image) for image in tensor_to_images(pixels)]
        return self.extractor(torch.stack(rounded))


def _row(key: str, estimate: Estimate, scores: Scores) -> dict[str, float | Scores]:
    """A measurement with its interval, as far as it has one, and its scores."""
    assert key in {measure.key for measure in MEASURES.values()}
    found: dict[str, float | Scores] = {key: estimate.value, f"{key}_scores": scores}
    if estimate.low == estimate.low:
        found |= {f"{key}_low": estimate.low, f"{key}_high": estimate.high}
    return found
