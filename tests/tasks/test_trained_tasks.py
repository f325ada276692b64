"""The tasks that need training: from a text-to-image base, with and without the cache, resumed, and then used."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from ldm.config import load_settings
from ldm.errors import UserError
from ldm.io.files import read_tensors
from ldm.models.loading.model import load_parts, save_parts
from ldm.models.low_resolution import LowResolutionNoise
from ldm.pipeline.pipeline import load_pipeline
from ldm.types import Conditioning
from tests.support.slow_cases import rest_slow
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import COLORS, COMMON, DENOISER
from train import denoiser
from train.run.denoiser_model import make_parts
from train.settings.denoiser import DenoiserSettings

ADDED_CHANNELS = {"inpaint": 5, "edit": 4, "upscale": 3, "restore": 4}
LABELS = {"upscale": 1000, "restore": 101}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, and squares in colours with the same squares in grey as their sources."""
    folder = tmp_path_factory.mktemp("tasks")
    save_parts(make_sd1(folder / "tokenizer"), folder / "base")
    (folder / "data").mkdir()
    rows = []
    for color in COLORS:
        Image.new("RGB", (16, 16), color).save(folder / f"data/{color}.png")
        Image.new("RGB", (16, 16), "grey").save(folder / f"data/{color}-source.png")
        rows.append({
            "file_name": f"{color}.png", "source_file_name": f"{color}-source.png", "instruction": f"make it {color}",
        })  # fmt: skip
    (folder / "data/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def config(folder: Path, task: str, name: str, **changes: Any) -> Path:
    """A run from the base; only editing uses the sources."""
    data = {"path": str(folder / "data"), "caption_column": "instruction", "height": 16, "width": 16}
    tree = {
        **COMMON,
        "program": "denoiser",
        "task": task,
        "base": str(folder / "base"),
        "run_dir": str(folder / f"{task}-{name}"),
        "data": data,
        "cache": {"folder": str(folder / "cache")},
        "preview": {"num_inference_steps": 1},
        "num_steps": 4,
        "optim": {**COMMON["optim"], "lr_schedule": "constant", "num_warmup_steps": 0},
        **changes,
    }
    path = folder / f"{task}-{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def settings_of(path: Path) -> DenoiserSettings:
    return load_settings(DenoiserSettings, path)


def run(folder: Path, task: str, name: str, **changes: Any) -> Path:
    assert denoiser.main([str(config(folder, task, name, **changes))]) == 0
    return folder / f"{task}-{name}"


def weights(run_dir: Path, file: str = "weights") -> dict[str, Tensor]:
    newest = sorted((run_dir / "checkpoints").iterdir())[-1]
    return read_tensors(newest / f"{file}.safetensors")


def losses(run_dir: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def first_loss(folder: Path) -> float:
    """Of the base without any added channels."""
    return losses(run(folder, "text-to-image", "plain", num_steps=1))[0]


@pytest.fixture(scope="module", params=rest_slow(ADDED_CHANNELS, "inpaint", "upscale"))
def trained(folder: Path, request: pytest.FixtureRequest) -> tuple[str, Path]:
    return request.param, run(folder, request.param, "cached")


def test_the_added_channels_are_trained_and_the_model_knows_its_task(trained: tuple[str, Path]) -> None:
    task, run_dir = trained
    conv_in = weights(run_dir)["denoiser.unet.conv_in.weight"]
    assert conv_in.shape[1] == 4 + ADDED_CHANNELS[task]
    assert conv_in[:, 4:].abs().amax(dim=(0, 2, 3)).min() > 0
    model = load_parts(run_dir / "pipeline")
    assert (model.task, model.denoiser.num_class_labels) == (task, LABELS.get(task, 0))
    if task in LABELS:
        table = weights(run_dir)["denoiser.unet.class_embedding.weight"]
        assert 0 < int(table.abs().amax(dim=1).count_nonzero()) <= 4 * 4  # a label for each sample
    assert len(list((run_dir / "previews").iterdir())) > 0


def test_the_cache_changes_nothing_but_rounding(trained: tuple[str, Path], folder: Path) -> None:
    task, cached = trained
    uncached = run(folder, task, "uncached", cache={"enabled": False})
    assert losses(uncached) == pytest.approx(losses(cached), abs=1e-5)


def test_it_resumes_to_the_last_bit(trained: tuple[str, Path], folder: Path) -> None:
    task, whole = trained
    run(folder, task, "resumed", num_steps=2)
    resumed = run(folder, task, "resumed", num_steps=4)
    assert losses(resumed) == losses(whole)
    one, two = weights(whole), weights(resumed)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_cached_masked_images_train_alike_and_resume_to_the_last_bit(folder: Path) -> None:
    """Two masks of each image, and more than two epochs."""
    cache = {"folder": str(folder / "cache"), "mask_variants": 2}
    whole = run(folder, "inpaint", "variants", cache=cache)
    uncached = run(folder, "inpaint", "variants-uncached", cache={"enabled": False, "mask_variants": 2})
    assert losses(uncached) == pytest.approx(losses(whole), abs=1e-5)
    run(folder, "inpaint", "variants-resumed", cache=cache, num_steps=2)
    resumed = run(folder, "inpaint", "variants-resumed", cache=cache, num_steps=4)
    assert losses(resumed) == losses(whole)
    one, two = weights(whole), weights(resumed)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_first_loss_is_that_of_the_base(trained: tuple[str, Path], first_loss: float) -> None:
    """The added channels and labels start at zero, so the base's first loss is not changed by them."""
    assert losses(trained[1])[0] == pytest.approx(first_loss, abs=1e-6)


@pytest.mark.parametrize("task", LABELS)
def test_before_the_first_step_the_output_is_the_bases_bit_for_bit(folder: Path, task: str) -> None:
    wide = make_parts(settings_of(config(folder, task, "zero"))).denoiser
    narrow = load_parts(folder / "base").denoiser
    generator = torch.Generator().manual_seed(0)
    latents, prompt = (
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.randn(2, 16, 32, generator=generator),
    )
    concat = torch.randn(2, ADDED_CHANNELS[task], 8, 8, generator=generator)
    told = Conditioning(prompt, concat=concat, class_labels=torch.tensor([3, 99]))
    timesteps = torch.tensor([3, 700])
    with torch.no_grad():
        assert torch.equal(wide(latents, timesteps, told), narrow(latents, timesteps, Conditioning(prompt)))


@pytest.mark.parametrize("task", LABELS)
def test_a_fresh_network_has_the_channels_and_a_table_of_zeros(folder: Path, task: str) -> None:
    parts = {"autoencoder": str(folder / "base"), "text_encoder": str(folder / "base")}
    shape = DENOISER["model"]
    fresh = make_parts(settings_of(config(folder, task, "fresh", base=None, parts=parts, model=shape)))
    unet = fresh.denoiser.unet
    assert (unet.config.in_channels, unet.config.num_class_embeds) == (4 + ADDED_CHANNELS[task], LABELS[task])
    assert unet.class_embedding.weight.abs().max() == 0
    assert (fresh.low_resolution is not None) is (task == "upscale")


def test_an_upscaler_goes_on_with_its_own_noise(trained: tuple[str, Path], folder: Path) -> None:
    task, run_dir = trained
    if task != "upscale":
        return
    base = str(run_dir / "pipeline")
    assert (
        make_parts(settings_of(config(folder, task, "on", base=base))).low_resolution == LowResolutionNoise()
    )
    other = config(folder, task, "other", base=base, upscale={"max_noise_level": 100})
    with pytest.raises(UserError, match="was trained with other low-resolution noise: leave upscale out"):
        make_parts(settings_of(other))


@pytest.mark.parametrize(
    ("task", "changes", "said"),
    [
        ("edit", {"upscale": {"max_noise_level": 100}}, "upscale is given, but it is for task: upscale"),
        ("upscale", {"restore": {"blur": 1.0}}, "restore is given, but it is for task: restore"),
        ("restore", {"restore": {"blur": -1.0}}, "restore.blur"),
        ("upscale", {"upscale": {"max_noise_level": 1000}}, "upscale.max_noise_level"),
        ("upscale", {"trainable": "lora"}, "needs 7 and 1000 class labels: set trainable: unet"),
    ],
)
def test_sections_of_other_tasks_and_wrong_ones_are_refused(
    folder: Path, task: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        make_parts(settings_of(config(folder, task, "refused", **changes)))


def test_it_makes_images_from_images(trained: tuple[str, Path]) -> None:
    task, run_dir = trained
    pipeline = load_pipeline(run_dir)
    side = 8 if task == "upscale" else 16
    image = Image.new("RGB", (side, side), "grey")
    mask = Image.new("L", (16, 16), 255) if task == "inpaint" else None
    made = pipeline.generate("make it red", image=image, mask=mask, num_inference_steps=2)
    assert made.records[0].task == task and made.images[0].size == (16, 16)


def test_settings_name_the_tasks_that_can_be_trained(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert denoiser.main([str(config(folder, "image-to-image", "refused"))]) == 2
    assert "a text-to-image model can do it" in capsys.readouterr().err
