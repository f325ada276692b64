"""A package like the one that LPIPS's weights are read from, with AlexNet of a few channels and random weights."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

CHANNELS = (3, 4, 6, 8, 5, 5)
KERNELS = (11, 5, 3, 3, 3)


def make_tree() -> dict[str, Any]:
    """The tree of arrays in the file: kernels [k, k, in, out], biases, and the importance of channels, above 0."""
    draw = np.random.default_rng(0)
    network, tree = {}, {}
    for i, (inputs, outputs, side) in enumerate(zip(CHANNELS, CHANNELS[1:], KERNELS, strict=False)):
        kernel = draw.normal(size=(side, side, inputs, outputs)) / (side * inputs**0.5)
        network[f"Conv_{i}"] = {"kernel": kernel.astype("f4"), "bias": draw.normal(size=outputs).astype("f4")}
        importance = draw.uniform(0.1, 1, size=(1, 1, outputs, 1)).astype("f4")
        tree[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": importance}}
    return {"AlexNet_0": network, **tree}


def install_lpips(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install the package in a folder; returns the hash of its weights, which the program then expects."""
    encoded = pickle.dumps(make_tree(), protocol=3)
    package = folder / "tiny_lpips_package"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('the package itself needs jax')\n")
    (package / "weights/alexnet.ckpt").write_bytes(encoded)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr("ldm.evaluation.perceptual.PACKAGE", package.name)
    found = hashlib.sha256(encoded).hexdigest()
    monkeypatch.setattr("ldm.evaluation.perceptual.WEIGHTS_SHA256", found)
    return found


def alexnet_of(tree: dict[str, Any]) -> nn.Sequential:
    """The layers as torchvision has them: convolution and ReLU, with max pooling after the first two."""
    layers: list[nn.Module] = []
    strides, paddings = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)
    for i, (stride, padding) in enumerate(zip(strides, paddings, strict=True)):
        conv = nn.Conv2d(CHANNELS[i], CHANNELS[i + 1], KERNELS[i], stride, padding)
        arrays = tree["AlexNet_0"][f"Conv_{i}"]
        with torch.no_grad():
            for o in range(CHANNELS[i + 1]):
                for c in range(CHANNELS[i]):
                    conv.weight[o, c] = torch.from_numpy(arrays["kernel"][:, :, c, o].copy())
            conv.bias.copy_(torch.from_numpy(arrays["bias"]))
        layers += [conv, nn.ReLU(), *([nn.MaxPool2d(3, 2)] if i < 2 else [])]
    return nn.Sequential(*layers)
