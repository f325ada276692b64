"""The loss on samples kept out of training, always at the same noise: two measurements differ by the weights alone.

Each held-out sample is measured at K noise levels, one in each K-th of the range, with draws that belong to its id: the
same at every step, in every run and for any number of processes. The samples are shared over the processes, and each
puts the same number of equal batches through the network, so that none waits for another for long.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

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


class ValidationSettings(Settings):
    """The loss on the held-out samples, and what is decided by it."""

    every: int = Field(0, ge=0, description="optimizer steps between two measurements; 0 turns them off")
    num_timesteps_per_sample: int = Field(
        4, ge=1, description="noise levels each held-out sample is shown at"
    )
    batch_size: int = Field(32, ge=1, description="noisy samples a process puts through the network at once")
    patience: int = Field(
        0, ge=0, description="measurements without a new best after which to stop; 0: never"
    )
    keep_best: bool = Field(False, description="keep the averaged weights with the lowest loss in best/")

    def model_post_init(self, _: Any) -> None:
        if not self.every and (self.patience or self.keep_best):
            raise ValueError("patience and keep_best go by the validation loss; set validation.every as well")


class Averaged(Protocol):
    """What holds an average of the weights and can lend it to the network."""

    def applied(self) -> AbstractContextManager[None]:
        """The network carries the averaged weights inside the block."""
        ...


class ValidationSamples:
    """Held-out samples, each as K batch dictionaries with fixed draws and its caption.

    Args:
        dataset: indexed by SampleKey, such as LatentSamples. What it draws itself, such as a crop, is that of epoch 0.
        captions: one a sample; nothing is dropped or shuffled here.
        buckets: what samples must share to be stacked in one batch, such as their size; None when all are alike.

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

    def batches(self, batch_size: int, rank: int = 0, num_processes: int = 1) -> Iterator[list[SampleKey]]:
        """A rank's samples in batches of at most `batch_size` noisy ones (and at least one sample).

        Of each bucket rank r has samples r, r + n, ... Where they do not go round it gets one that weighs nothing:
        sharded networks need every rank to run as often as the others.
        """
        size = max(1, batch_size // self.num_draws)
        for bucket in sorted(set(self.buckets), key=str):
            members = [i for i, each in enumerate(self.buckets) if each == bucket]
            keys = [SampleKey(0, i) for i in members[rank::num_processes]]
            if len(keys) < -(-len(members) // num_processes):
                keys.append(SampleKey(0, members[0], weight=0.0))
            yield from (keys[start : start + size] for start in range(0, len(keys), size))


def fixed_draws(item: Mapping[str, Any], k: int, num_draws: int) -> dict[str, Any]:
    """Draw k of K of what an item holds of `noise`, `posterior_noise` and `position`.

    The positions of a sample lie one in each of [0, 1/K), [1/K, 2/K), ... They and the noise are keyed by the sample's
    id and not by the run's seed, so that runs can be compared.
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
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, float]:
    """The mean loss of the held-out samples and its standard error; every process must call it.

    Evaluation mode, no gradient, the averaged weights. The same number for any number of processes, but for rounding.

    Args:
        module: maps a batch to per-sample tensors, among them `loss` [b]; bare, or as FSDP has sharded it.
        average: lends `module` the averaged weights.

    Returns:
        `validation_loss`, and from two samples on `validation_loss_stderr`, over the samples.
    """
    rank, num_processes = _place()
    with average.applied() if average else nullcontext(), evaluating(module):
        batches = samples.batches(batch_size, rank, num_processes)
        sums = loss_sums(module, samples, batches, device, autocast)
    if num_processes > 1:
        sums = sums.to(device)
        torch.distributed.all_reduce(sums)
    return mean_and_error(sums)


def loss_sums(
    module: nn.Module,
    samples: ValidationSamples,
    batches: Iterator[list[SampleKey]],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """[3] in float64: the sum of the samples' losses, of their squares, and the number of samples."""
    sums = torch.zeros(3, dtype=torch.float64)
    for keys in batches:
        batch = collate([item for key in keys for item in samples[key]])
        with torch.no_grad(), autocast():
            losses = module(_on(batch, device))["loss"]
        each = losses.double().cpu().view(len(keys), samples.num_draws).mean(dim=1)
        weight = torch.tensor([key.weight for key in keys], dtype=torch.float64)
        sums += torch.stack([(weight * each).sum(), (weight * each.square()).sum(), weight.sum()])
    return sums


def mean_and_error(sums: Tensor) -> dict[str, float]:
    """The mean of n losses and its standard error sqrt(var / n), var with n - 1, from what `loss_sums` adds up."""
    total, squares, count = sums.tolist()
    mean = total / count
    found = {"validation_loss": mean}
    if count > 1:
        variance = max(0.0, squares - count * mean**2) / (count - 1)
        found["validation_loss_stderr"] = math.sqrt(variance / count)
    return found


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, and nothing compiled; after it each part is in the mode it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with uncompiled(module):
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _place() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _on(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
