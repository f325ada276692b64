"""Runs that can forget: small images of three shapes, a run with every checkpoint, and runs that never had some."""

import json
import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.models.loading.model import save_parts
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import write_config
from train.denoiser import main as train_denoiser
from train.run.checkpoints import checkpoints
from train.run.history import CLOCKS
from train.run.log import read_metrics

SIZES = [(16, 16), (32, 16), (16, 32)]


def write_images(folder: Path, num_images: int, without: Collection[str] = ()) -> Path:
    """Images of random colours and three shapes, with two captions each; image N is called N.png."""
    folder.mkdir(parents=True)
    rows, draw = [], random.Random(0)
    for number in range(num_images):
        name, color = f"{number}.png", tuple(draw.randrange(256) for _ in range(3))
        if name not in without:
            Image.new("RGB", SIZES[number % 3], color).save(folder / name)
            rows.append({"file_name": name, "text": f"red {number}", "captions": ["a red square"]})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@dataclass(frozen=True)
class Forgetful:
    """Where runs are trained with the same settings on more or fewer images.

    Attributes:
        data: settings of the data, besides its place.
        changes: other settings.
    """

    root: Path
    num_images: int
    data: dict[str, Any]
    changes: dict[str, Any]

    def train(self, name: str, without: Collection[str] = ()) -> Path:
        """Train a run on a folder without some of the images; returns its directory."""
        images = write_images(self.root / f"data-{name}", self.num_images, without)
        return self.train_on(images, name)

    def train_on(self, images: Path, name: str, **changes: Any) -> Path:
        base = self.root / "base"
        if not base.is_dir():
            save_parts(make_sd1(self.root / "tokenizer"), base)
        program = {"program": "denoiser", "base": str(base), "trainable": "unet"}
        preview = {"prompts": ["red"], "num_inference_steps": 1}
        source = {"path": str(images), "repeats": self.data.get("repeats", 1)}
        data = {key: value for key, value in self.data.items() if key != "repeats"}
        config = write_config(
            self.root / f"{name}.yaml", program, images, self.root / name,
            **{
                "save_every": 1, "keep_every": 1, "preview": preview, **self.changes, **changes,
                "data": {"height": 16, "width": 16, "order": "keyed", **data, "sources": [source]},
            },
        )  # fmt: skip
        assert train_denoiser([str(config)]) == 0
        return self.root / name

    def resume(self, run_dir: Path) -> None:
        """Train a run whose directory exists to its end."""
        assert train_denoiser([str(run_dir / "config.yaml")]) == 0


def run_contents(run_dir: Path) -> dict[str, Any]:
    """All that a run computed: the files of its newest checkpoint, the model, and the rows without times."""
    newest = checkpoints(run_dir / "checkpoints")[-1]
    files = {path.name: path.read_bytes() for path in newest.iterdir()}
    del files["manifest.json"]
    numbers = json.loads(files.pop("state.json"))
    del numbers["elapsed_sec"]
    rows = [{k: v for k, v in row.items() if k not in CLOCKS} for row in read_metrics(run_dir)]
    model = sorted((run_dir / "pipeline").rglob("*.safetensors"))
    return {
        **files,
        "numbers": numbers,
        "rows": rows,
        "model": [path.read_bytes() for path in model],
        "best": [path.read_bytes() for path in sorted((run_dir / "best").rglob("*.safetensors"))[-1:]],
    }
