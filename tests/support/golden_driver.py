"""Everything that must not change when code is moved, as SHA-256 by name: images, trained weights, exports, a report.

    python tests/support/golden_driver.py OUT.json [SECTION ...]

It uses only the command line, the public Python API and files, so it runs on any commit, chosen by `PYTHONPATH`.
"""

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ldm

Values = Iterator[tuple[str, str]]
PACKAGE = "ldm_train" if (Path(ldm.__file__).parents[1] / "ldm_train").is_dir() else "train"
EMOJI = Path(ldm.__file__).parent / "assets" / "emoji"
TIMED = ("sec", "memory", "time", "eta")
"""Parts of the names of metrics that depend on timing or on memory."""

PICTURES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no guidance": {"guidance_scale": 1.0},
    "negative": {"negative_prompt": "green", "guidance_scale": 5.0},
    "rescale": {"guidance_scale": 9.0, "guidance_rescale": 0.7},
    "interval of steps": {"guidance_interval": (0.0, 0.5)},
    "interval of noise": {"guidance_interval": (5.0, 0.3)},
    "reuse": {"deep_features_every": 3},
    "reuse and interval": {"deep_features_every": 2, "guidance_interval": (0.0, 0.5)},
    "two chunks": {"max_prompt_chunks": 2},
    "karras": {"karras": True},
    "ddpm": {"scheduler": "ddpm"},
    "ddim": {"scheduler": "ddim"},
    "euler": {"scheduler": "euler"},
    "euler_a": {"scheduler": "euler_a"},
    "heun": {"scheduler": "heun"},
    "dpmpp_2m_sde": {"scheduler": "dpmpp_2m_sde"},
    "dpmpp_2s": {"scheduler": "dpmpp_2s"},
    "kdpm2_a": {"scheduler": "kdpm2_a"},
    "unipc": {"scheduler": "unipc"},
    "pndm": {"scheduler": "pndm"},
    "lms": {"scheduler": "lms"},
    "sa_solver": {"scheduler": "sa_solver"},
    "batches of two": {"batch_size": 2},
    "batches of one": {"batch_size": 1},
    "other size": {"height": 96, "width": 48},
}
PROMPTS = ["a red apple", "a rocket", " ".join(["a blue whale beside a small yellow duck,"] * 3)]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def of_images(images: list[Image.Image]) -> str:
    return sha256(b"".join(repr(each.size).encode() + each.tobytes() for each in images))


def of_tensors(path: Path) -> str:
    """The tensors of a safetensors file, without its metadata."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(
            tensor.contiguous().view(torch.uint8).numpy().tobytes()
            if tensor.ndim
            else bytes(str(tensor.item()), "utf8")
        )
    return digest.hexdigest()


def quietly(call: Callable[[], Any]) -> Any:
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        result = call()
    assert result in (0, None), said.getvalue()
    return result


def command(*arguments: object, code: int = 0) -> None:
    done = subprocess.run([sys.executable, "-m", "ldm", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr


# Images of the embedded model


def write_lora(folder: Path) -> Path:
    """A small random LoRA for the embedded model's attention, with diffusers' names."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for file in sorted((EMOJI / "unet").glob("*.safetensors")):
        for name, weight in sorted(load_file(file).items()):
            if name.endswith(("attn2.to_q.weight", "attn2.to_v.weight")):
                stem = "unet." + name.removesuffix(".weight")
                tensors[f"{stem}.lora_A.weight"] = 0.1 * torch.randn(4, weight.shape[1], generator=generator)
                tensors[f"{stem}.lora_B.weight"] = 0.1 * torch.randn(weight.shape[0], 4, generator=generator)
    path = folder / "change.safetensors"
    save_file(tensors, path)
    return path


def pictures(folder: Path) -> Values:
    import warnings

    warnings.simplefilter("ignore")
    pipeline = ldm.load_pipeline("emoji")
    for name, settings in PICTURES.items():
        made = pipeline.generate(PROMPTS, seed=7, **{"num_inference_steps": 5, **settings})
        yield f"picture {name}", of_images(made.images)
    made = pipeline.generate(PROMPTS[0], seeds=[3, 9], num_images=2, num_inference_steps=4)
    yield "picture seeds", of_images(made.images)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))[:, : made.latents.shape[1]]
    made = pipeline.generate(PROMPTS[0], latents=latents, num_inference_steps=4)
    yield "picture latents", of_images(made.images)
    lora = write_lora(folder)
    made = ldm.load_pipeline("emoji", loras=[(lora, 0.7)]).generate(PROMPTS, num_inference_steps=4)
    yield "picture lora", of_images(made.images)
    made = ldm.load_pipeline("emoji", dtype="bfloat16").generate(PROMPTS[0], num_inference_steps=2)
    yield "picture bfloat16", of_images(made.images)
    (folder / "prompts.jsonl").write_text(
        '{"prompt": "a cat", "seed": 5, "scheduler": "euler", "num_images": 2}\n{"prompt": "a dog", "preset": "fast"}\n'
    )
    given = ("--prompts", folder / "prompts.jsonl", "--num-inference-steps", 4, "--lora", f"{lora}:0.5")
    command("generate", "a red apple", *given, "--output", folder / "out", "--grid")
    for path in sorted((folder / "out").iterdir()):
        with Image.open(path) as image:
            yield f"picture of the command {path.name}", of_images([image])
            if "parameters" in image.info:
                yield f"parameters of {path.name}", sha256(image.info["parameters"].encode())
    command(
        "generate",
        "--from-image",
        sorted((folder / "out").glob("0002*"))[0],
        "--lora",
        lora,
        "--output",
        folder / "again",
    )
    with Image.open(next((folder / "again").iterdir())) as image:
        yield "picture made again", of_images([image])


# Trainings of tiny models

COMMON: dict[str, Any] = {
    "num_steps": 20, "global_batch_size": 4, "save_every": 10, "preview_every": 20, "log_every": 1, "device": "cpu",
    "optim": {"learning_rate": 0.003, "num_warmup_steps": 2, "ema_decay": 0.9},
}  # fmt: skip
SIZES = [(16, 16), (16, 16), (32, 16), (16, 32), (16, 16), (24, 24), (16, 16), (32, 16), (16, 16)]


def write_images(folder: Path) -> Path:
    """Nine images of noise on a colour, with several aspect ratios and with captions."""
    folder.mkdir(parents=True)
    rows = []
    for number, (width, height) in enumerate(SIZES):
        noise = np.random.default_rng(number).integers(0, 60, (height, width, 3))
        pixels = (noise + np.array([number * 20, 190 - number * 20, 90])).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        caption = f"picture {number} of colour {number % 3}"
        rows.append(
            json.dumps({"file_name": f"{number}.png", "text": caption, "captions": [f"number {number}"]})
        )
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def write_tars(folder: Path, images: Path) -> Path:
    folder.mkdir()
    files = sorted(images.glob("*.png"))
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for file in files[shard::2]:
                caption = folder.parent / f"{file.stem}.txt"
                caption.write_text(f"picture {file.stem}")
                tar.add(file, file.name)
                tar.add(caption, caption.name)
    return folder


def train(folder: Path, name: str, tree: dict[str, Any]) -> Values:
    """Run a program; returns what it wrote, without timings."""
    run_dir = folder / name
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump({**COMMON, **tree, "run_dir": str(run_dir)}))
    program = import_module(f"{PACKAGE}.{tree['program']}")
    quietly(lambda: program.main([str(config)]))
    for path in sorted(run_dir.rglob("*.safetensors")):
        yield f"{name} {path.relative_to(run_dir)}", of_tensors(path)
    for path in sorted(run_dir.rglob("*.png")):
        with Image.open(path) as image:
            yield f"{name} {path.relative_to(run_dir)}", of_images([image])
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not any(part in k for part in TIMED)} for row in rows]
    yield f"{name} metrics.jsonl", sha256(json.dumps(kept, sort_keys=True).encode())


def trainings(folder: Path) -> Values:
    images = write_images(folder / "images")
    tars = write_tars(folder / "tars", images)
    size = {"height": 16, "width": 16, "upscale": True}
    data = {"path": str(images), **size}
    yield from train(
        folder,
        "autoencoder",
        {
            "program": "autoencoder",
            "data": data,
            "model": {"block_out_channels": [8, 16], "latent_channels": 3, "norm_num_groups": 4},
        },
    )
    text_model = {
        "embed_dim": 16, "patch_size_px": 8, "vision_width": 16, "vision_layers": 1, "vision_heads": 2,
        "text_width": 16, "text_layers": 1, "text_heads": 2, "context_length": 12,
    }  # fmt: skip
    yield from train(
        folder,
        "text_encoder",
        {"program": "text_encoder", "data": data, "num_merges": 20, "model": text_model},
    )
    fresh = {
        "program": "denoiser",
        "parts": {"autoencoder": str(folder / "autoencoder"), "text_encoder": str(folder / "text_encoder")},
        "model": {
            "block_out_channels": [8, 16],
            "attention": [False, True],
            "attention_head_dim": 8,
            "norm_num_groups": 4,
        },
        "data": data,
        "preview": {"prompts": ["picture 1"], "num_inference_steps": 2},
    }
    cached = {"cache": {"folder": str(folder / "cache")}}
    yield from train(folder, "scratch", {**fresh, **cached, "data": {**data, "flip": True}})
    uncached = {"cache": {"enabled": False}}
    yield from train(folder, "uncached", {**fresh, **uncached, "data": {**data, "flip": True}})
    objective = {
        "weighting": "min_snr",
        "offset_noise": 0.1,
        "input_perturbation": 0.1,
        "loss": "huber",
        "timestep_shift": 3.0,
    }
    v_schedule = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    yield from train(folder, "objective", {**fresh, **cached, "objective": objective, "schedule": v_schedule})
    shared = {name: fresh[name] for name in ("program", "data", "preview")}
    base = {**shared, "base": str(folder / "scratch"), **cached}
    yield from trainings_of_base(folder, base, tars)
    shards = sorted((folder / "cache").rglob("*.safetensors"))
    for number, path in enumerate(shards):
        yield f"cache shard {number}", of_tensors(path)
    yield "cache shard count", str(len(shards))
    yield from tiny_exports(folder)


def trainings_of_base(folder: Path, base: dict[str, Any], tars: Path) -> Values:
    """Every way to train a model that exists; `base` holds what these runs share."""
    data = base["data"]
    yield from train(folder, "full", {**base, "trainable": "unet+text_encoder", "captions": {"dropout": 0.3}})
    yield from train(folder, "lora", {**base, "trainable": "lora", "lora": {"rank": 2, "dropout": 0.1}})
    token = {"token": "<thing>", "initial_word": "picture", "num_vectors": 2}
    yield from train(folder, "embedding", {**base, "trainable": "embedding", "embedding": token})
    buckets = {**data, "upscale": False, "buckets": True, "holdout_fraction": 0.3, "flip": True}
    validation = {"validation": {"every": 5, "keep_best": True, "num_timesteps_per_sample": 2}}
    yield from train(
        folder, "buckets", {**base, "data": buckets, "max_micro_batch": 2, "prompt_chunks": 2, **validation}
    )
    streamed = {**data, "path": str(tars), "streaming": True, "num_workers": 0}
    yield from train(folder, "streaming", {**base, "cache": {"enabled": False}, "data": streamed})


# Exports


def of_folder(name: str, folder: Path) -> Values:
    """Every file of an export, except prose and files with a time in them.

    The order in which a safetensors header lists its entries is random, so tensors and header are hashed apart.
    """
    for path in sorted(folder.rglob("*")):
        key = f"{name} {path.relative_to(folder)}"
        if path.suffix == ".safetensors":
            yield key, of_tensors(path)
            with safe_open(path, "pt") as file:
                yield f"{key} header", of_json(json.dumps(file.metadata()), folder)
        elif path.suffix in (".bin", ".txt"):
            yield key, sha256(path.read_bytes())
        elif path.suffix == ".json" and path.name != "export.json":
            yield key, of_json(path.read_text(), folder)


def of_json(text: str, folder: Path) -> str:
    """JSON in any order, without the paths of this call and without hashes of files, whose headers vary."""
    plain = re.sub("[0-9a-f]{64}", "", text.replace(str(folder.parent), "").replace(str(EMOJI), ""))
    return sha256(json.dumps(json.loads(plain), sort_keys=True).encode())


def tiny_exports(folder: Path) -> Values:
    for format in ("lora-diffusers", "lora-peft", "lora-kohya"):
        command("export", folder / "lora", folder / format, "--format", format, "--num-samples", 0)
        yield from of_folder(format, folder / format)
    command("export", folder / "lora", folder / "fused", "--num-samples", 0)
    yield from of_folder("fused", folder / "fused")
    command("export", folder / "lora", folder / "kept-apart", "--keep-lora-apart", "--num-samples", 0)
    yield from of_folder("kept-apart", folder / "kept-apart")


def write_narrow(folder: Path) -> Path:
    """A narrow model with the structure of Stable Diffusion 1, which can be stored in a single file."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    names = import_module(next(filter(found, ("ldm.models.clip_tokenizer", "ldm.models." + "text_stock"))))
    tokenizer: CLIPTokenizer = names.clip_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=1,
        max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, block_out_channels=(32, 32, 64, 64),
        layers_per_block=2, norm_num_groups=32, cross_attention_dim=64, attention_head_dim=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 64), layers_per_block=2, latent_channels=4,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    stock = StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    stock.save_pretrained(folder)
    return folder


def found(name: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def exports(folder: Path) -> Values:
    narrow = write_narrow(folder / "narrow")
    command("export", narrow, folder / "narrow-out", "--format", "single-file", "--num-samples", 0)
    yield from of_folder("single-file", folder / "narrow-out")
    file = next((folder / "narrow-out").rglob("*.safetensors"))
    command("import", file, folder / "imported")
    yield from of_folder("imported", folder / "imported")
    made = ldm.load_pipeline(str(file)).generate("a cat", num_inference_steps=2)
    yield "picture of a single file", of_images(made.images)
    command("export", "emoji", folder / "openvino", "--format", "openvino", "--num-samples", 0)
    yield from of_folder("openvino", folder / "openvino")


# A data report


def fixed(folder: Path) -> Values:
    """Values that are the same on every machine."""
    command("export", "emoji", folder / "half", "--dtype", "float16", "--variant", "--num-samples", 0)
    yield from of_folder("export emoji", folder / "half")
    yield from report(folder, write_images(folder / "images"))


def report(folder: Path, images: Path) -> Values:
    (images / "broken.png").write_bytes(b"not an image")
    rows = (images / "metadata.jsonl").read_text() + '\n{"file_name": "broken.png", "text": "broken"}'
    (images / "metadata.jsonl").write_text(rows)
    command("data", "check", images, "--height", 16, "--report", folder / "report", code=2)
    found = json.loads((folder / "report" / "data_report.json").read_text().replace(str(folder), ""))
    del found["doubts"]  # reports had none when the value was recorded
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    yield "data report", sha256(text.encode())


SECTIONS: dict[str, Callable[[Path], Values]] = {
    "pictures": pictures,
    "trainings": trainings,
    "exports": exports,
    "fixed": fixed,
}


def main(out: Path, sections: list[str]) -> None:
    values: dict[str, str] = {}
    for name in sections or list(SECTIONS):
        with tempfile.TemporaryDirectory() as folder:
            values |= dict(SECTIONS[name](Path(folder)))
    out.write_text(json.dumps(values, indent=1))


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(Path(sys.argv[1]), sys.argv[2:])
