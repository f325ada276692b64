"""For tests of pushes: a small model folder with real files, and a fake Hub for this process."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from ldm.io.files import sha256_file, write_tensors
from tests.support.hub_server import TOKEN, HubServer

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
}
CARD = "---\nlicense: mit\n---\n# A model\n\n![first](samples/0.png)\n"
SENT = [
    "README.md",
    "ldm.json",
    "model_index.json",
    "samples/0.png",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
]


def make_folder(folder: Path) -> Path:
    """A miniature export of a model: weights of 4 kB, configurations, and a card with an image."""
    for name in ("unet", "scheduler", "samples"):
        (folder / name).mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    (folder / "ldm.json").write_text('{"defaults": {}}')
    (folder / "scheduler" / "scheduler_config.json").write_text('{"beta_start": 0.00085}')
    (folder / "unet" / "config.json").write_text('{"in_channels": 4}')
    write_tensors(
        folder / "unet" / "diffusion_pytorch_model.safetensors", {"conv_in.weight": torch.ones(999)}
    )
    (folder / "README.md").write_text(CARD)
    Image.new("RGB", (8, 8), "red").save(folder / "samples" / "0.png")
    return folder


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """The hash and modification time of every file by name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): (sha256_file(p), p.stat().st_mtime_ns) for p in files}


@pytest.fixture(name="hub")
def given_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A fake Hub that huggingface_hub uses in this process, logged in and without pauses (see `waits`)."""
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        huggingface_hub.close_session()


@pytest.fixture(name="waits")
def given_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The requested pauses in seconds; none is made."""
    asked: list[float] = []
    monkeypatch.setattr(time, "sleep", asked.append)
    return asked


@pytest.fixture(name="folder")
def given_folder(tmp_path: Path) -> Iterator[Path]:
    """A model's folder, which must be unchanged after the test."""
    made = make_folder(tmp_path / "model")
    before = contents(made)
    yield made
    assert contents(made) == before
