"""The loss on held-out samples, always with the same noise: two measurements differ only through the weights.

Each held-out sample is measured at K noise levels, one in each K-th of the range. Its draws are keyed by its id, so
they are the same at every step, in every run and for any number of processes. Each process takes a share of the samples
and runs the network equally often.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from ldm import noise
from ldm.config import Settings
from ldm.data.batches import collate
from ldm.data.order import SampleKey
from ldm.errors import UserError
from ldm.models.engines.compiled import uncompiled

from .processes import ALONE, Processes

Decider = Literal["loss", "kid", "clip", "judge"]
"""What the best step can be chosen by: the loss on held-out samples, or a measurement of generated images."""


class ValidationSettings(Settings):
    """The loss on the held-out samples, measurements of generated images, and the decisions based on them."""

    every: int = Field(0, ge=0, description="optimizer steps between measurements; 0: never")
    num_timesteps_per_sample: int = Field(
        4, ge=1, description="noise levels at which each held-out sample is measured"
    )
    batch_size: int = Field(32, ge=1, description="noisy samples per forward pass of a process")
    patience: int = Field(
        0,
        ge=0,
        description="stop after this many measurements in a row that are no better than the best, taking their error "
        "into account; 0: never",
    )
    keep_best: bool | Decider = Field(
        False,
        description="keep the averaged weights of the best step in best/. true or loss: by the loss; kid, clip or "
        "judge: by that measurement of generated images, which then also decides for patience",
    )
    evaluate_every: int = Field(
        0,
        ge=0,
        description="optimizer steps between measurements of images that are generated from held-out captions as "
        "previews are, image i with seed i; 0: never",
    )
    num_images: int = Field(64, ge=10, description="images generated per measurement")
    features: str = Field(
        "autoencoder",
        description="the network whose features KID compares with the held-out images: autoencoder, the model's own; "
        "inception; or the folder of a CLIP or DINOv2 model",
    )
    clip: str | None = Field(
        None, description="the folder of a CLIP model, which scores the generated images"
    )

    @property
    def decider(self) -> Decider:
        """What decides which step is the best."""
        return "loss" if isinstance(self.keep_best, bool) else self.keep_best

    def model_post_init(self, _: Any) -> None:
        decides = self.patience or self.keep_best
        if decides and self.decider == "loss" and not self.every:
            raise ValueError("patience and keep_best need the validation loss: set validation.every as well")
        if self.decider != "loss" and not self.evaluate_every:
            raise ValueError(
                f"keep_best: {self.keep_best} needs generated images: set validation.evaluate_every as well"
            )
        if self.decider == "clip" and self.clip is None:
            raise ValueError("keep_best: clip needs a CLIP model: set validation.clip as well")
        if self.clip is not None and not self.evaluate_every:
            raise ValueError("clip scores generated images: set validation.evaluate_every as well")


class Averaged(Protocol):
    """An average of the weights that the network can use for a while."""

    def applied(self) -> AbstractContextManager[None]:
        """Inside the block the network has the averaged weights."""
        ...


class ValidationSamples:
    """Held-out samples, each as K batch dictionaries with fixed draws and its caption.

    Args:
        dataset: indexed by SampleKey, such as LatentSamples. Its own draws, such as the crop, are those of epoch 0.
        captions: one per sample; they are neither dropped nor shuffled.
        buckets: what samples of one batch must share, such as their size; None if all are alike.

    Raises:
        UserError: there is no sample.
    """

    def __init__(
        self,
        dataset: "Dataset[dict[str, Any]]",
        captions: Sequence[str],
        *,
        num_timesteps_per_sample: int,
        buckets: Sequence[Any] | None = None,
    ) -> None:
        if not captions:
            raise UserError("validation without held-out samples", "set data.holdout_fraction above 0")
        assert len(captions) == len(dataset)  # type: ignore[arg-type]  # a map-style dataset has a length
        self.dataset, self.captions, self.num_draws = dataset, captions, num_timesteps_per_sample
        self.buckets = buckets or [0] * len(captions)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, key: SampleKey) -> list[dict[str, Any]]:
        """The sample at each of its K noise levels."""
        item = self.dataset[key._replace(epoch=0)]
        caption = self.captions[key.sample_index]
        return [
            {**item, **fixed_draws(item, k, self.num_draws), "caption": caption}
            for k in range(self.num_draws)
        ]

    def batches(self, batch_size: int, processes: Processes = ALONE) -> Iterator[list[SampleKey]]:
        """A process's samples in batches of at most `batch_size` noisy ones (and at least one sample).

        Process r of n has samples r, r + n, ... of each bucket. If it has fewer than another process, it gets one more
        with weight 0, because a sharded network must run equally often on all of them.
        """
        size = max(1, batch_size // self.num_draws)
        for bucket in sorted(set(self.buckets), key=str):
            members = [i for i, each in enumerate(self.buckets) if each == bucket]
            keys = [SampleKey(0, i) for i in members[processes.rank :: processes.num_processes]]
            if len(keys) < -(-len(members) // processes.num_processes):
                keys.append(SampleKey(0, members[0], weight=0.0))
            yield from (keys[start : start + size] for start in range(0, len(keys), size))


def fixed_draws(item: Mapping[str, Any], k: int, num_draws: int) -> dict[str, Any]:
    """Draw k of K for those of `noise`, `posterior_noise` and `position` that an item has.

    A sample has one position in each of [0, 1/K), [1/K, 2/K), ... Positions and noise are keyed by the sample's id, not
    by the run's seed, so that runs can be compared.
    """
    key = ("validation", item["sample_id"], k)
    draws: dict[str, Any] = {
        name: torch.randn(item[name].shape, generator=noise.generator_for(*key, name))
        for name in ("noise", "posterior_noise")
        if name in item
    }
    if "position" in item:
        draws["position"] = (k + noise.uniform(*key, "position")) / num_draws
    return draws


def held_out_loss(
    module: nn.Module,
    samples: ValidationSamples,
    *,
    batch_size: int,
    device: torch.device,
    average: Averaged | None = None,
    processes: Processes = ALONE,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    losses: Tensor | None = None,
) -> dict[str, float]:
    """The mean loss of the held-out samples and its standard error. Every process must call it.

    In evaluation mode, without gradients, with the averaged weights. The number of processes changes only the rounding.

    Args:
        module: maps a batch to per-sample tensors, including `loss` [b]; plain or sharded, not wrapped by DDP.
        average: the averaged weights of `module`.
        losses: [N] zeros in float64, which receive the loss of each sample.

    Returns:
        `validation_loss`, and with at least two samples `validation_loss_stderr`.
    """
    with average.applied() if average else nullcontext(), evaluating(module):
        batches = samples.batches(batch_size, processes)
        sums = loss_sums(module, samples, batches, device, autocast, losses)
    if losses is not None:
        losses.copy_(summed(losses, device, processes))
    return mean_and_error(summed(sums, device, processes))


def summed(numbers: Tensor, device: torch.device, processes: Processes) -> Tensor:
    """The sum over all processes, on the CPU. Every process must call it."""
    if processes.num_processes == 1:
        return numbers
    numbers = numbers.to(device)
    torch.distributed.all_reduce(numbers)
    return numbers.cpu()


def loss_sums(
    module: nn.Module,
    samples: ValidationSamples,
    batches: Iterator[list[SampleKey]],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    each_loss: Tensor | None = None,
) -> Tensor:
    """[3] in float64: the sum of the samples' losses, of their squares, and the number of samples.

    Args:
        each_loss: [N], which receives the loss of each sample of these batches.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for keys in batches:
        batch = collate([item for key in keys for item in samples[key]])
        with torch.no_grad(), autocast():
            losses = module(_on(batch, device))["loss"]
        each = losses.double().cpu().view(len(keys), samples.num_draws).mean(dim=1)
        weight = torch.tensor([key.weight for key in keys], dtype=torch.float64)
        sums += torch.stack([(weight * each).sum(), (weight * each.square()).sum(), weight.sum()])
        if each_loss is not None:
            for key, loss in zip(keys, each, strict=True):
                each_loss[key.sample_index] += key.weight * loss
    return sums


def mean_and_error(sums: Tensor) -> dict[str, float]:
    """The mean of n losses and its standard error sqrt(var / n), with the unbiased variance, from `loss_sums`."""
    total, squares, count = sums.tolist()
    mean = total / count
    found = {"validation_loss": mean}
    if count > 1:
        variance = max(0.0, squares - count * mean**2) / (count - 1)
        found["validation_loss_stderr"] = math.sqrt(variance / count)
    return found


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no compiled code inside the block; afterwards each part has its former mode."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with uncompiled(module):
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _on(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
