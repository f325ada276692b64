"""Tiny but real training runs for the tests: coloured squares, networks of a few thousand weights."""

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

COLORS = ["red", "green", "blue", "yellow", "black", "cyan", "magenta"]
COMMON: dict[str, Any] = {
    "num_steps": 6,
    "global_batch_size": 4,
    "save_every": 100,
    "preview_every": 100,
    "log_every": 1,
    "device": "cpu",
    "optim": {"learning_rate": 0.003, "num_warmup_steps": 2, "ema_decay": 0.5},
}
AUTOENCODER: dict[str, Any] = {
    "program": "autoencoder",
    "model": {"block_out_channels": [8, 16], "latent_channels": 3, "norm_num_groups": 4},
}
TEXT_ENCODER: dict[str, Any] = {
    "program": "text_encoder",
    "num_merges": 20,
    "model": {
        "embed_dim": 16, "patch_size_px": 8, "vision_width": 16, "vision_layers": 1, "vision_heads": 2,
        "text_width": 16, "text_layers": 1, "text_heads": 2, "context_length": 12,
    },
}  # fmt: skip
DENOISER: dict[str, Any] = {
    "program": "denoiser",
    "trainable": "unet+text_encoder",
    "model": {
        "block_out_channels": [8, 16], "attention": [False, True], "attention_head_dim": 8, "norm_num_groups": 4,
    },
    "preview": {"prompts": ["red"], "num_inference_steps": 2},
}  # fmt: skip


def write_squares(folder: Path) -> Path:
    """Seven coloured squares, 16 px, with two captions each: with batches of four, an epoch ends with one of three."""
    folder.mkdir(parents=True)
    lines = []
    for color in COLORS:
        Image.new("RGB", (16, 16), color).save(folder / f"{color}.png")
        lines.append(
            json.dumps({"file_name": f"{color}.png", "text": color, "captions": [f"a {color} square"]})
        )
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def write_config(path: Path, program: dict[str, Any], data: Path, run_dir: Path, /, **changes: Any) -> Path:
    """Write a configuration file for one of the programs above."""
    tree = {
        **COMMON,
        **program,
        "run_dir": str(run_dir),
        "data": {"path": str(data), "height": 16, "width": 16},
        **changes,
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def train_parts(folder: Path) -> dict[str, str]:
    """Train an autoencoder and a text encoder in `folder`; returns the `parts:` of a denoiser."""
    from train.autoencoder import main as train_autoencoder
    from train.text_encoder import main as train_text_encoder

    data = write_squares(folder / "data")
    parts = {}
    for name, tree, main in (
        ("autoencoder", AUTOENCODER, train_autoencoder),
        ("text_encoder", TEXT_ENCODER, train_text_encoder),
    ):
        run_dir = folder / name
        assert main([str(write_config(folder / f"{name}.yaml", tree, data, run_dir))]) == 0
        parts[name] = str(run_dir)
    return parts
