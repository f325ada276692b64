"""Held-out samples of random latents, and a network whose loss depends on everything drawn for them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ldm import noise
from ldm.data.batches import SampleKey
from train.loop.validation import ValidationSamples

CPU = torch.device("cpu")
NUM_SAMPLES, NUM_DRAWS = 7, 4


class Latents(Dataset[dict[str, Any]]):
    """Batch dictionaries as in training: everything is redrawn each epoch, captions are dropped."""

    def __init__(self, sizes: tuple[int, ...] = (4,) * NUM_SAMPLES) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        size = self.sizes[key.sample_index]
        sample_id = f"image-{key.sample_index}"
        random = noise.generator_for(key.epoch, sample_id)
        return {
            "sample_id": sample_id,
            "moments": torch.randn(4, size, size, generator=noise.generator_for(sample_id)),
            "posterior_noise": torch.randn(2, size, size, generator=random),
            "noise": torch.randn(2, size, size, generator=random),
            "position": noise.uniform(key.epoch, sample_id),
            "crop": noise.choice(1000, key.epoch, sample_id),
            "caption": "",
            "weight": key.weight,
            "loss_weight": 1.0,
        }


class Network(nn.Module):
    """A denoiser of two channels with dropout, whose loss depends on every draw and on the caption."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Dropout(0.5), nn.Conv2d(8, 2, 1))
        self.frozen = nn.Dropout(0.5).eval()
        self.num_calls = 0

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert not torch.is_grad_enabled()
        self.num_calls += 1
        latents = batch["moments"][:, :2] + batch["moments"][:, 2:] * batch["posterior_noise"]
        position = batch["position"].view(-1, 1, 1, 1)
        length = torch.tensor([len(c) for c in batch["caption"]]).view(-1, 1, 1, 1)
        model_pred = self.net(latents * (1 - position) + batch["noise"] * position) + length
        return {"loss": (model_pred - batch["noise"]).square().mean(dim=(1, 2, 3))}


def held_out(sizes: tuple[int, ...] = (4,) * NUM_SAMPLES, **options: Any) -> ValidationSamples:
    captions = [f"caption {'x' * i}" for i in range(len(sizes))]
    return ValidationSamples(Latents(sizes), captions, num_timesteps_per_sample=NUM_DRAWS, **options)
