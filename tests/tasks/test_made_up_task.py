"""A task that is written in this file alone trains, resumes, and generates: it paints over a source image."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from ldm.data.sample import ImageInput, TaskInputs
from ldm.io.files import read_tensors
from ldm.io.images import image_to_tensor
from ldm.models.loading.model import load_parts, save_parts
from ldm.tasks import TASKS, Encode, TrainingInputs, register_task
from ldm.tasks.text_to_image import TextToImage
from ldm.types import Conditioning
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import COLORS, COMMON
from train import denoiser
from train.data.denoiser_data import read_samples
from train.run.preview import PreviewInputs, generate_with_inputs
from train.run.run import Run
from train.settings.denoiser import DenoiserSettings, PreviewSettings


@dataclass(frozen=True)
class PaintOver(TextToImage):
    """The latents of a source image are concatenated to the noisy ones, as in InstructPix2Pix."""

    name: str = "paint-over"
    trained_as: str = "paint-over"
    inputs: TaskInputs = TaskInputs(images=(ImageInput("source", encoded=True),))  # noqa: RUF009
    scales_inputs: bool = False
    given: Mapping[str, str] = field(default_factory=lambda: {"image": "source"})

    def concat_channels(self, latent_channels: int) -> int:
        return latent_channels

    def training_conditioning(self, prompt: Conditioning, inputs: TrainingInputs) -> Conditioning:
        return replace(prompt, concat=inputs.latents["source"])

    def generation_conditioning(
        self, prompt: Conditioning, images: Mapping[str, Tensor], encode: Encode
    ) -> Conditioning:
        return replace(prompt, concat=encode(images["source"]))


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    register_task(PaintOver())
    yield
    del TASKS["paint-over"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and squares with the half-grey squares that they were painted over."""
    folder = tmp_path_factory.mktemp("paint-over")
    save_parts(make_sd1(folder / "tokenizer"), folder / "base")
    (folder / "data").mkdir()
    rows = []
    for color in COLORS:
        square = Image.new("RGB", (16, 16), color)
        square.save(folder / f"data/{color}.png")
        square.paste("grey", (0, 0, 8, 16))
        square.save(folder / f"data/{color}-source.png")
        rows.append({"file_name": f"{color}.png", "source_file_name": f"{color}-source.png", "text": "red"})
    (folder / "data/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


FRESH: dict[str, Any] = {
    "model": {
        "block_out_channels": [8, 16], "attention": [False, True], "attention_head_dim": 8, "norm_num_groups": 4,
    },
}  # fmt: skip


def write_config(folder: Path, name: str, **changes: Any) -> Path:
    """A run of the task; from scratch unless `base` is among the changes."""
    parts = {"parts": {"autoencoder": str(folder / "base"), "text_encoder": str(folder / "base")}, **FRESH}
    tree = {
        **COMMON,
        "program": "denoiser",
        "task": "paint-over",
        "run_dir": str(folder / name),
        "data": {"path": str(folder / "data"), "height": 16, "width": 16, "flip": True},
        "cache": {"folder": str(folder / "cache")},
        "preview": {"num_inference_steps": 2},
        **({} if "base" in changes else parts),
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run(folder: Path, name: str, **changes: Any) -> Path:
    """Train to the end; returns the run's directory."""
    assert denoiser.main([str(write_config(folder, name, **changes))]) == 0
    return folder / name


def losses(run_dir: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def weights(run_dir: Path, file: str = "weights") -> dict[str, Tensor]:
    newest = sorted((run_dir / "checkpoints").iterdir())[-1]
    return read_tensors(newest / f"{file}.safetensors")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A run from scratch of 24 steps."""
    return run(folder, "fresh", num_steps=24, optim={**COMMON["optim"], "learning_rate": 0.01})


def test_it_trains_a_unet_with_eight_input_channels(trained: Path) -> None:
    unet = load_parts(trained / "pipeline").denoiser.unet
    assert (unet.config.in_channels, unet.config.out_channels) == (8, 4)
    told = losses(trained)
    assert sum(told[-10:]) < 0.9 * sum(told[:10])
    assert (trained / "previews/step-000024.png").is_file()


def test_the_weights_of_the_source_channels_are_trained(folder: Path) -> None:
    """With a base they start at zero, and only a gradient can change them."""
    run_dir = run(folder, "based", base=str(folder / "base"))
    conv_in = weights(run_dir)["denoiser.unet.conv_in.weight"]
    assert conv_in.shape[1] == 8 and conv_in[:, 4:].abs().max() > 0
    assert load_parts(run_dir / "pipeline").denoiser.concat_channels == 4


def test_zero_weights_keep_the_base_as_it_was(folder: Path) -> None:
    settings = DenoiserSettings.model_validate(
        yaml.safe_load(write_config(folder, "zero", base=str(folder / "base")).read_text())
    )
    wide = denoiser.make_loss(settings).parts.denoiser
    narrow = load_parts(folder / "base").denoiser
    latents, concat = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    told = Conditioning(torch.zeros(2, 16, 32)), Conditioning(torch.zeros(2, 16, 32), concat=concat)
    timesteps = torch.tensor([3, 700])
    with torch.no_grad():
        expected, found = narrow(latents, timesteps, told[0]), wide(latents, timesteps, told[1])
    torch.testing.assert_close(found, expected)


def test_the_source_of_each_sample_reaches_the_denoiser(folder: Path) -> None:
    """Cached or not, its latents are the unscaled mean of its own image's posterior."""
    for enabled in (True, False):
        cache = {"enabled": enabled, "folder": str(folder / "cache")}
        path = write_config(folder, f"seen-{enabled}", cache=cache)
        settings = DenoiserSettings.model_validate(yaml.safe_load(path.read_text()))
        job = Run(settings)
        loss, _ = denoiser.make_model(job, settings)
        data = read_samples(job, settings, loss)
        batch = next(iter(job.loader(data.dataset, job.order(data.bucket_of, 0))))
        concat = loss.conditioning(batch, torch.device("cpu")).concat
        assert concat is not None
        for row, sample_id in zip(concat, batch["sample_id"], strict=True):
            source = image_to_tensor(Image.open(folder / "data" / sample_id.replace(".png", "-source.png")))
            straight, mirrored = (
                loss.parts.autoencoder.encode(pixels[None]).chunk(2, dim=1)[0][0]
                for pixels in (source, source.flip(-1))
            )
            assert any(torch.allclose(row, each, atol=1e-4) for each in (straight, mirrored))


def test_it_resumes_to_the_last_bit(folder: Path) -> None:
    constant = {"optim": {**COMMON["optim"], "lr_schedule": "constant"}}
    whole = run(folder, "whole", num_steps=6, **constant)
    run(folder, "resumed", num_steps=3, **constant)
    resumed = run(folder, "resumed", num_steps=6, **constant)
    assert losses(resumed) == losses(whole)
    for file in ("weights", "average", "optimizer"):
        one, two = weights(whole, file), weights(resumed, file)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_it_generates_from_a_prompt_and_a_source(trained: Path) -> None:
    parts = load_parts(trained / "pipeline")
    settings, cpu = PreviewSettings(num_inference_steps=3, guidance_scale=2.0), torch.device("cpu")

    def painted(color: str) -> Image.Image:
        source = image_to_tensor(Image.new("RGB", (16, 16), color))[None]
        inputs = PreviewInputs(["red"], {"source": source})
        (image,) = generate_with_inputs(parts, PaintOver(), settings, inputs, cpu)
        return image

    assert painted("white").size == (16, 16)
    assert painted("white").tobytes() == painted("white").tobytes() != painted("black").tobytes()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "paint-ower"}, "unknown task 'paint-ower': did you mean 'paint-over'?"),
        ({"base": "BASE", "trainable": "lora"}, "needs 8: set trainable: unet, because an adapter cannot"),
        ({"base": "BASED", "task": "text-to-image"}, "8 input channels, task 'text-to-image' needs 4"),
        ({"data": {"path": "PLAIN", "height": 16, "width": 16}}, "source_file_name"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(
    folder: Path,
    trained: Path,
    changes: dict[str, Any],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = folder / "plain"
    plain.mkdir(exist_ok=True)
    Image.new("RGB", (16, 16), "red").save(plain / "red.png")
    (plain / "metadata.jsonl").write_text('{"file_name": "red.png", "text": "red"}')
    known = {"BASE": str(folder / "base"), "BASED": str(trained / "pipeline"), "PLAIN": str(plain)}
    text = json.dumps(changes)
    for name, path in known.items():
        text = text.replace(f'"{name}"', json.dumps(path))
    assert denoiser.main([str(write_config(folder, "refused", **json.loads(text)))]) == 2
    assert said in capsys.readouterr().err
