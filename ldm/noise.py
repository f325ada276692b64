"""Every random draw of the project, each a pure function of its key.

In training a draw depends on (seed, epoch, sample id, purpose) and on nothing else: not on the rank, the worker,
the batch or what was drawn before. So no random state is saved and any number of processes sees the same noise.
In generation an image has one integer seed and its noise is `torch.Generator("cpu").manual_seed(seed)`, which is what
stock diffusers draws with `generator=[...]`.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def key_to_seed(*key: int | str) -> int:
    """A 63-bit seed from a key; different keys give unrelated seeds (BLAKE2b)."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator for one key, for instance `(seed, epoch, sample_id, "noise")`."""
    return torch.Generator("cpu").manual_seed(key_to_seed(*key))


def image_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator an image, seeded with the image's own seed."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def normal_per_image(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal noise [B, *shape] in float32 on the CPU, row i from generator i alone."""
    return torch.cat([torch.randn(1, *shape, generator=g, dtype=torch.float32) for g in generators])


def permutation(num_samples: int, *key: int | str) -> list[int]:
    """The order of `num_samples` samples that belongs to a key such as `(seed, epoch, "order")`."""
    return torch.randperm(num_samples, generator=generator_for(*key)).tolist()


def uniform(*key: int | str) -> float:
    """One number in [0, 1)."""
    return float(torch.rand((), generator=generator_for(*key), dtype=torch.float64))


def choice(num_choices: int, *key: int | str) -> int:
    """One of 0 ... num_choices - 1, all equally likely."""
    return int(torch.randint(num_choices, (), generator=generator_for(*key)))
