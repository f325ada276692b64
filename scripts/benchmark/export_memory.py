"""The peak memory of exports, of the program that writes and of the reader that it starts, against the model's size.

The model has the public configuration of Stable Diffusion 1.5 and random weights, and so has its LoRA. Memory is read
from Linux every 50 ms. Pages of mapped files, which the system may take back at any time, are counted apart.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.diffusion.path import DDPMPath, ScheduleSettings
from ldm.models.adapters.folder import Adapter, find_base, save_adapter
from ldm.models.adapters.lora import LoraSettings, add_lora, lora_weights
from ldm.models.clip import ClipTextEncoder
from ldm.models.families.stable_diffusion import SD1
from ldm.models.loading.folder import Defaults
from ldm.models.loading.model import load_parts
from ldm.models.parts import ModelParts
from ldm.models.unet import UNetDenoiser
from ldm.models.vae import KLAutoencoder
from ldm.pipeline.pipeline import Pipeline

from .memory import own_and_mapped
from .models import SD15, Shape, make_unet
from .samples import machine

GOAL = 1.3
"""The writer's peak beyond its imports, over the size of the model in float32, in which it is held."""
NARROW_SD15 = Shape((32, 64, 64, 64), SD15.attends, 2, 2, (32, 32, 32, 32), 768, 1)
HALF_SD15 = replace(SD15, unet_channels=(160, 320, 640, 640))
SHAPES = {"full": SD15, "quick": HALF_SD15, "smallest": NARROW_SD15}
EVERY_SEC = 0.05
EXPORTS = {
    "lora-kohya": ("lora", "--format", "lora-kohya"),
    "single-file float16": ("model", "--format", "single-file", "--dtype", "float16"),
    "diffusers float16": ("model", "--format", "diffusers", "--dtype", "float16", "--variant"),
}


@dataclass(frozen=True)
class Peak:
    """The most memory of an export, in GB.

    Attributes:
        writer, reader: of each process, without mapped files.
        together: of both at the same time.
        writer_with_files, reader_with_files: with the pages of mapped files.
    """

    writer: float
    reader: float
    together: float
    writer_with_files: float
    reader_with_files: float
    sec: float


def export_memory(scale: str, output: Path | None) -> str:
    """Measure each of `EXPORTS` once; returns a table.

    Args:
        output: JSON file for the result.
    """
    result: dict[str, Any] = {"benchmark": "export-memory", "goal": GOAL, "exports": {}, "machine": machine()}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        size = 4 * write_models(folder, SHAPES[scale]) / 1e9
        result |= {"model_gb": size, "imports_gb": _baseline()}
        for name, arguments in EXPORTS.items():
            peak = _measure(folder, name, arguments)
            ratio = (peak.writer - result["imports_gb"]) / size
            result["exports"][name] = {**asdict(peak), "writer_ratio": ratio}
            if output:
                output.write_text(json.dumps(result, indent=2, default=str) + "\n")
    lines = [f"model {size:.2f} GB in float32, imports {result['imports_gb']:.2f} GB"]
    lines += [f"{name}: {json.dumps(entry)}" for name, entry in result["exports"].items()]
    return "\n".join(lines)


def write_models(folder: Path, shape: Shape) -> int:
    """Write a model to `folder/model` and a LoRA for it to `folder/lora`; returns the model's number of weights."""
    torch.manual_seed(0)
    assert SD1.single_file is not None
    tokenizer = SD1.single_file.tokenizers()["tokenizer"]
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=768, intermediate_size=3072, num_hidden_layers=shape.text_layers,
        num_attention_heads=12, max_position_embeddings=77, hidden_act="quick_gelu",
    )  # fmt: skip
    levels = len(shape.vae_channels)
    vae = AutoencoderKL(
        block_out_channels=shape.vae_channels, down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels, layers_per_block=2, latent_channels=4, sample_size=512,
    )  # fmt: skip
    schedule = DDPMPath(ScheduleSettings()).scheduler_config()
    defaults = Defaults(height=512, width=512, num_inference_steps=20)
    parts = ModelParts(
        UNetDenoiser(make_unet(shape, 512)), KLAutoencoder(vae), ClipTextEncoder(tokenizer, CLIPTextModel(text)),
        schedule, defaults,
    )  # fmt: skip
    Pipeline(parts).save(folder / "model")
    settings = LoraSettings(rank=8, alpha=8)
    add_lora(parts.lora_networks(), settings, seed=0)
    base = find_base(folder / "model")
    adapter = Adapter("lora", base.given, base.weights_hash, schedule, settings.model_dump(mode="json"))
    save_adapter(folder / "lora", adapter, lora_weights(parts.lora_networks()), defaults)
    fresh = load_parts(folder / "model").networks().values()
    return sum(weight.numel() for network in fresh for weight in network.parameters())


def _measure(folder: Path, name: str, arguments: tuple[str, ...]) -> Peak:
    print(f"{name} ...", file=sys.stderr, flush=True)
    source, *options = arguments
    command = [
        sys.executable,
        "-m",
        "ldm",
        "export",
        str(folder / source),
        str(folder / name),
        "--num-samples",
        "0",
    ]
    began = time.perf_counter()
    peaks = {"writer": 0, "reader": 0, "together": 0, "writer_with_files": 0, "reader_with_files": 0}
    with subprocess.Popen([*command, *options]) as process:
        while process.poll() is None:
            writer, reader = own_and_mapped(process.pid), _readers(process.pid)
            seen = {
                "writer": writer[0], "reader": reader[0], "together": writer[0] + reader[0],
                "writer_with_files": sum(writer), "reader_with_files": sum(reader),
            }  # fmt: skip
            peaks = {key: max(peaks[key], seen[key]) for key in peaks}
            time.sleep(EVERY_SEC)
    if process.returncode:
        raise SystemExit(process.returncode)
    return Peak(**{key: value / 1e9 for key, value in peaks.items()}, sec=time.perf_counter() - began)


def _readers(pid: int) -> tuple[int, int]:
    """The memory of a process's children."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0, 0
    found = [own_and_mapped(int(child)) for child in children]
    return sum(own for own, _ in found), sum(files for _, files in found)


def _baseline() -> float:
    """GB of a program that has imported what an export imports, and loaded nothing."""
    code = "import ldm.export.artefact, ldm.pipeline.pipeline; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        own = own_and_mapped(process.pid)[0]
        process.kill()
    return own / 1e9
