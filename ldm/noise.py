"""All random draws of the project. Each is a pure function of its key.

In training, a draw depends on (seed, epoch, sample id, purpose) and on nothing else: not on the rank, the worker, the
batch or earlier draws. So no random state needs saving, and any number of processes sees the same noise. In
generation, each image has an integer seed, and its noise comes from `torch.Generator("cpu").manual_seed(seed)`, as in
stock diffusers with `generator=[...]`.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def key_to_seed(*key: int | str) -> int:
    """A 63-bit seed for a key; different keys give unrelated seeds (BLAKE2b)."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator for a key such as `(seed, epoch, sample_id, "noise")`."""
    return torch.Generator("cpu").manual_seed(key_to_seed(*key))


def image_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per image, seeded with the image's seed."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def normal_per_image(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal noise [B, *shape] in float32 on the CPU; row i is drawn from generator i alone."""
    return torch.cat([torch.randn(1, *shape, generator=g, dtype=torch.float32) for g in generators])


def permutation(num_samples: int, *key: int | str) -> list[int]:
    """The order of `num_samples` samples for a key such as `(seed, epoch, "order")`."""
    return torch.randperm(num_samples, generator=generator_for(*key)).tolist()


def uniform(*key: int | str) -> float:
    """A number in [0, 1)."""
    return float(torch.rand((), generator=generator_for(*key), dtype=torch.float64))


def choice(num_choices: int, *key: int | str) -> int:
    """A number from 0 to num_choices - 1, all equally likely."""
    return int(torch.randint(num_choices, (), generator=generator_for(*key)))
