"""Denoiser, text encoder and objective as one module: a batch in, one loss per sample out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.batches import DRAWN
from ldm.diffusion.edm import EDMPath
from ldm.diffusion.loss_aware import LossHistory
from ldm.diffusion.objective import diffusion_loss, split_by_tenth, timestep_at
from ldm.diffusion.path import DDPMPath, ProbabilityPath
from ldm.models.dropout import set_dropout_keys
from ldm.models.families.family import SizeConditions
from ldm.models.loading.model import ModelParts
from ldm.tasks import TrainingInputs, find_task, input_latents
from ldm.types import Conditioning

from ..settings.denoiser import DenoiserSettings
from .distillation import Distillation
from .optim import ParameterGroup
from .reflow import ReflowTeacher
from .steps import Batch, to_device

EmbedPrompts = Callable[[list[str]], Conditioning]


class DenoiserLoss(nn.Module):
    """The loss of a denoiser as a module, whose parameters are those of the networks that are trained.

    The autoencoder and a frozen text encoder are used, but are not submodules.

    Attributes:
        parts: the whole model.
        task: what the denoiser is told besides the prompt.
        prompts: the outputs of a frozen text encoder, from the cache; None calls the text encoder.
        distillation: what takes the place of the usual objective; None for that.
        tells_sizes: whether the denoiser is told sizes, which a batch then has.
        teacher: with reflow, what makes the latents; not a module either.
    """

    def __init__(
        self,
        parts: ModelParts,
        settings: DenoiserSettings,
        path: ProbabilityPath,
        groups: Sequence[ParameterGroup],
        distillation: Distillation | None = None,
        teacher: ReflowTeacher | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = parts.denoiser
        if settings.trains_text_encoder:
            self.text_encoder = parts.text_encoder
        self.settings, self.groups = settings, list(groups)
        self.path: ProbabilityPath = path
        self.distillation = distillation
        self.teacher = teacher
        self.loss_history: LossHistory | None = None
        if settings.objective.timestep_distribution == "loss_aware":
            assert isinstance(path, DDPMPath)
            self.loss_history = LossHistory(path.settings.num_train_timesteps)
        self._observed: list[Tensor] = []
        self.task = find_task(settings.task).configured(settings.task_settings).for_model(parts)
        self.parts = parts  # not a module, so its networks are not moved, saved or trained with this one
        self.tells_sizes = parts.family.time_ids is not None
        self.prompts: EmbedPrompts | None = None

    def use_deviation(self, sigma_data: float) -> None:
        """Train on EDM's path for latents of this standard deviation, and save the model with it."""
        assert isinstance(self.path, EDMPath)
        self.path = self.path.measured(sigma_data)
        self.parts.scheduler_config = self.path.scheduler_config()

    def numbers(self) -> dict[str, Any]:
        """What the loss depends on besides the weights: the latents' deviation (EDM), the losses of timesteps."""
        found: dict[str, Any] = {}
        measured = self.settings.base is None and self.settings.edm.sigma_data is None
        if measured and isinstance(self.path, EDMPath):
            found["sigma_data"] = self.path.sigma_data
        if self.loss_history is not None:
            found["loss_history"] = self.loss_history.numbers()
        return found

    def load_numbers(self, numbers: dict[str, Any]) -> None:
        """Continue with what an earlier part of the run has measured."""
        if "sigma_data" in numbers and isinstance(self.path, EDMPath):
            self.use_deviation(float(numbers["sigma_data"]))
        if "loss_history" in numbers and self.loss_history is not None:
            self.loss_history.load(numbers["loss_history"])

    def start_step(self) -> None:
        """Forget the losses of a step that is done, or repeated."""
        self._observed.clear()

    def observed(self) -> Tensor | None:
        """Timestep and loss of this process's samples of the step, [b, 2]; None without loss-aware sampling."""
        if self.loss_history is None:
            return None
        return torch.cat(self._observed) if self._observed else torch.zeros(0, 2, dtype=torch.float64)

    def learn(self, observed: Tensor) -> None:
        """Take in timestep and loss of the samples of all processes, [b, 2]."""
        assert self.loss_history is not None
        self.loss_history.update(observed[:, 0].long(), observed[:, 1])

    def parameter_groups(self) -> list[ParameterGroup]:
        """The groups for the optimizer."""
        return self.groups

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample `loss` [b], and for each tenth of the timesteps `loss_tK` and `count_tK` [b]."""
        set_dropout_keys(self, batch["noise"])
        latents = self.latents(batch)
        timesteps = self.timesteps(batch, latents)
        loss = self.losses(batch, latents, timesteps)
        weight = batch["loss_weight"]
        if self.loss_history is not None and self.training:
            self._observed.append(
                torch.stack([timesteps.double(), loss.detach().double()], dim=1)[batch["weight"] > 0]
            )
            weight = weight * self.loss_history.weights(timesteps)
        return {
            "loss": loss * weight,
            **by_tenth(loss, self.path.tenth(timesteps)),
        }

    def losses(self, batch: Batch, latents: Tensor, timesteps: Tensor) -> Tensor:
        """The loss of each sample, [b]."""
        conditioning = self.conditioning(batch, latents.device)
        if self.distillation is not None:
            empty = self.embed([""], latents.device) if self.distillation.is_guided else None
            return self.distillation.loss(self.denoiser, batch, latents, conditioning, empty, self.path)
        return diffusion_loss(
            self.denoiser,
            latents,
            batch["noise"],
            timesteps,
            conditioning,
            self.path,
            self.settings.objective,
            mask=batch.get("loss_mask"),
            offset=batch.get("offset"),
            perturbation=batch.get("perturbation"),
        )

    def use_average(self, average: Mapping[str, Tensor]) -> None:
        """Take in the averaged weights by the weights' names, which give a distillation its target."""
        if self.distillation is not None:
            own = {name.removeprefix("denoiser."): tensor for name, tensor in average.items()}
            self.distillation.use_average(self.denoiser, own)

    def timesteps(self, batch: Batch, latents: Tensor) -> Tensor:
        """The batch's timesteps [b]. Validation does not sample them by their losses."""
        if self.distillation is not None:
            return self.distillation.timesteps(batch, self.path)
        if self.loss_history is not None and self.training:
            return self.loss_history.timesteps_at(batch["position"])
        return timestep_at(batch["position"], self.path, self.settings.objective, self.size_ratio(latents))

    def size_ratio(self, latents: Tensor) -> float:
        """The pixels of the batch's images divided by those of `data.height` x `data.width`."""
        data, side = self.settings.data, self.parts.autoencoder.pixels_per_latent
        height, width = latents.shape[2:]
        return height * width * side**2 / (data.height * data.width)

    def latents(self, batch: Batch) -> Tensor:
        """The batch's latents [b, C, h, w], sampled from its moments or from those of its pixel values.

        With reflow they are what the teacher makes of the batch's noise.
        """
        if self.teacher is not None:
            return self.teacher.latents(batch["noise"], batch["caption"])
        moments = batch["moments"] if "moments" in batch else self.encode(batch["pixel_values"])
        return self.parts.autoencoder.sample_posterior(moments, batch["posterior_noise"])

    def encode(self, pixel_values: Tensor) -> Tensor:
        """[b, 3, H, W] -> moments [b, 2C, h, w]."""
        with frozen_encoder(pixel_values.device):
            return self.parts.autoencoder.encode(pixel_values)

    def conditioning(self, batch: Batch, device: torch.device) -> Conditioning:
        """What the denoiser is told about the batch: its captions, and the images that the task needs."""
        latents, pixel_values = {}, {}
        for image in self.task.inputs.images:
            if image.encoded:
                latents[image.name] = self.input_latents(batch, image.key)
            elif image.key in batch:
                pixel_values[image.name] = batch[image.key]
        made = self.task.inputs.drawn_image
        if made and made.name in batch:  # cached, in place of the pixel values that it is made from
            latents[made.name] = self.input_latents(batch, made.name)
        drawn = {name.removeprefix(DRAWN): value for name, value in batch.items() if name.startswith(DRAWN)}
        prompt = self.embed(batch["caption"], device)
        if self.tells_sizes:
            prompt = self.parts.with_sizes(prompt, [size_conditions(row) for row in batch["told_sizes"]])
        inputs = TrainingInputs(self.encode_input, latents, pixel_values, drawn, self.training)
        return self.task.training_conditioning(prompt, inputs)

    def encode_input(self, pixel_values: Tensor) -> Tensor:
        """[b, 3, H, W] -> the latents [b, C, h, w] that the task takes, without gradients."""
        return input_latents(self.task, self.parts.autoencoder, self.encode(pixel_values))

    def input_latents(self, batch: Batch, key: str) -> Tensor:
        """The latents [b, C, h, w] of an image that the task needs; the batch has moments of all images, or of none."""
        moments = batch[key] if "moments" in batch else self.encode(batch[key])
        return input_latents(self.task, self.parts.autoencoder, moments)

    def embed(self, captions: list[str], device: torch.device) -> Conditioning:
        """The captions' embeddings, from the cache or from the text encoder."""
        if self.prompts is not None:
            return self.prompts(captions).map(lambda tensor: to_device(tensor, device))
        with nullcontext() if self.settings.trains_text_encoder else frozen_encoder(device):
            embeds: Conditioning = self.parts.text_encoder(captions, num_chunks=self.settings.prompt_chunks)
            return embeds


def size_conditions(told: Sequence[float]) -> SizeConditions:
    """A sample's `BucketedSample.told_sizes` as the model's family takes them."""
    height, width, top, left, target_height, target_width = told
    return SizeConditions((height, width), (top, left), (target_height, target_width))


@contextmanager
def frozen_encoder(device: torch.device) -> Iterator[None]:
    """Inside the block an encoder computes what the cache would hold: no gradient, and float32 in mixed precision.

    Stable Diffusion's autoencoder would overflow in fp16.
    """
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def by_tenth(loss: Tensor, tenths: Tensor) -> dict[str, Tensor]:
    """`loss_tK` and `count_tK`, each [b]: for samples in tenth K the loss and 1, for others 0 and 0."""
    losses, counts = split_by_tenth(loss, tenths)
    found = {f"loss_t{tenth}": part for tenth, part in enumerate(losses)}
    return found | {f"count_t{tenth}": part for tenth, part in enumerate(counts)}
