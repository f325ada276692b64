"""Training a ControlNet: its start, what is trained, the cache, resuming, and its use."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import ControlNetModel
from PIL import Image

from ldm.errors import LdmWarning, UserError
from ldm.export.export_source import load_source
from ldm.io.files import read_tensors
from ldm.models.control.controlnet import ControlledUNet, with_fresh_controlnet
from ldm.models.loading.model import load_parts, save_parts
from ldm.pipeline.pipeline import load_pipeline
from ldm.types import Conditioning
from tests.support.tiny_images import NOISE
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import COLORS, COMMON
from train import denoiser
from train.data.denoiser_data import read_samples
from train.run.run import Run
from train.settings.denoiser import DenoiserSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, and half white images in colours with maps of the same halves."""
    folder = tmp_path_factory.mktemp("control")
    save_parts(make_sd1(folder / "tokenizer"), folder / "base")
    (folder / "data").mkdir()
    rows = []
    for number, color in enumerate(COLORS):
        image, control = Image.new("RGB", (20, 16), "white"), Image.new("RGB", (20, 16))
        for each, paint in ((image, color), (control, "white")):
            each.paste(paint, (number, 0, number + 8, 16))
        image.save(folder / f"data/{color}.png")
        control.save(folder / f"data/{color}-control.png")
        rows.append({"file_name": f"{color}.png", "control_file_name": f"{color}-control.png", "text": color})
    (folder / "data/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def config(folder: Path, name: str, **changes: Any) -> Path:
    tree = {
        **COMMON,
        "program": "denoiser",
        "task": "control",
        "trainable": "controlnet",
        "controlnet": {"kind": "scribble"},
        "base": str(folder / "base"),
        "run_dir": str(folder / name),
        "data": {"path": str(folder / "data"), "height": 16, "width": 16, "flip": True, "crop_variants": 2},
        "captions": {"dropout": 0.5},
        "cache": {"folder": str(folder / "cache")},
        "preview": {"num_inference_steps": 1},
        "num_steps": 4,
        "optim": {**COMMON["optim"], "lr_schedule": "constant", "num_warmup_steps": 0},
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in tree.items() if value is not None}))
    return path


def run(folder: Path, name: str, **changes: Any) -> Path:
    assert denoiser.main([str(config(folder, name, **changes))]) == 0
    return folder / name


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return read_tensors(sorted((run_dir / "checkpoints").iterdir())[-1] / "weights.safetensors")


def losses(run_dir: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    return run(folder, "trained")


def test_a_fresh_controlnet_changes_nothing_and_learns_from_the_outside_in(tmp_path: Path) -> None:
    """Bit-equal at step 0; the first gradient reaches the zero convolutions alone, later ones the hint's layers."""
    parts = make_sd1(tmp_path)
    before = parts.denoiser
    fresh = with_fresh_controlnet(parts, seed=0)
    assert all(p.equal(q) for p, q in zip(fresh.controlnet.parameters(), _fresh_again(parts), strict=True))
    fresh.controlnet.requires_grad_(True)
    told = Conditioning(torch.ones(2, 16, 32), hints=(torch.rand(2, 3, 16, 16),))
    timesteps = torch.tensor([3, 900])
    plain = before(NOISE, timesteps, Conditioning(told.prompt_embeds))
    assert torch.equal(fresh(NOISE, timesteps, told), plain)
    net = fresh.controlnet
    reached = []
    for _ in range(3):
        net.zero_grad()
        (fresh(NOISE, timesteps, told) - 1).square().mean().backward()
        embedding = net.controlnet_cond_embedding
        layers = (net.controlnet_mid_block, embedding.conv_out, embedding.conv_in)
        reached.append([bool(layer.weight.grad.any()) for layer in layers])
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    assert reached == [[True, False, False], [True, True, False], [True, True, True]]
    assert all(parameter.grad is None for parameter in fresh.unet.parameters())


def _fresh_again(parts: Any) -> list[torch.Tensor]:
    return list(with_fresh_controlnet(parts, seed=0).controlnet.parameters())


def test_the_result_is_a_controlnet_beside_an_unchanged_base(trained: Path, folder: Path) -> None:
    found = weights(trained)
    assert found and all(name.startswith("denoiser.controlnet.") for name in found)
    assert all(tensor.any() for name, tensor in found.items() if name.endswith("controlnet_mid_block.weight"))
    theirs = ControlNetModel.from_pretrained(trained / "pipeline")
    assert theirs.config.conditioning_embedding_out_channels == [16, 32]
    base, own = load_parts(folder / "base"), load_parts(trained / "pipeline")
    assert own.task == "text-to-image" and list(own.controls) == ["scribble"]
    for one, two in zip(base.denoiser.parameters(), own.denoiser.parameters(), strict=True):
        assert torch.equal(one, two)
    assert (trained / "previews/step-000004.png").is_file()


def test_it_is_not_exported_as_its_base(trained: Path) -> None:
    with pytest.raises(UserError, match="is a ControlNet, and `ldm export` writes models"):
        load_source(trained)


def test_it_starts_at_the_loss_of_the_base(trained: Path, folder: Path) -> None:
    plain = run(folder, "plain", task="text-to-image", trainable="unet", controlnet=None, num_steps=1)
    assert losses(trained)[0] == pytest.approx(losses(plain)[0], abs=1e-6)


def test_the_cache_changes_nothing_but_rounding(trained: Path, folder: Path) -> None:
    uncached = run(folder, "uncached", cache={"enabled": False}, num_steps=2)
    assert losses(uncached) == pytest.approx(losses(trained)[:2], abs=1e-5)


def test_it_resumes_to_the_last_bit(trained: Path, folder: Path) -> None:
    run(folder, "resumed", num_steps=2)
    resumed = run(folder, "resumed", num_steps=4)
    one, two = weights(trained), weights(resumed)
    assert losses(resumed) == losses(trained) and all(torch.equal(one[name], two[name]) for name in one)


def test_hint_and_image_are_cropped_and_flipped_together(folder: Path) -> None:
    """Hints are in [0, 1], white exactly where the image is coloured, also without a caption."""
    path = config(folder, "seen", cache={"enabled": False})
    settings = DenoiserSettings.model_validate(yaml.safe_load(path.read_text()))
    job = Run(settings)
    loss, _ = denoiser.make_model(job, settings)
    data = read_samples(job, settings, loss)
    assert isinstance(loss.parts.denoiser, ControlledUNet)
    places = set()
    for epoch in range(4):
        for batch in job.loader(data.dataset, job.order(data.bucket_of, epoch)):
            (hint,) = loss.conditioning(batch, torch.device("cpu")).hints
            coloured = (batch["pixel_values"] < 1).any(dim=1, keepdim=True)
            assert torch.equal(hint, coloured.float().expand(-1, 3, -1, -1))
            places |= {tuple(row.tolist()) for row in hint[:, 0, 0]}
    assert len(places) > len(COLORS)


def test_it_is_used_from_its_run_and_for_other_bases_with_a_warning(trained: Path, folder: Path) -> None:
    hint = Image.new("RGB", (16, 16), "white")
    options: dict[str, Any] = {"num_inference_steps": 2, "seed": 1, "control": {"scribble": hint}}
    own = load_pipeline(trained)
    made = own.generate("red", **options)
    added = load_pipeline(folder / "base", controlnets={"scribble": trained})
    assert torch.equal(added.generate("red", **options).latents, made.latents)
    assert made.records[0].controls[0].name == "trained" == added.parts.controls["scribble"].name
    other = make_sd1(folder / "other-tokenizer")
    torch.nn.init.ones_(other.denoiser.unet.conv_out.bias)
    save_parts(other, folder / "other")
    with pytest.warns(LdmWarning, match="trained with another base model: its unet differ"):
        load_pipeline(folder / "other", controlnets={"scribble": trained})
    adapter = trained / "pipeline/adapter.json"
    before, after = (json.dumps(str(folder / name)) for name in ("base", "other"))
    adapter.write_text(adapter.read_text().replace(before, after))
    with pytest.raises(UserError, match="has other weights now"):
        load_pipeline(trained)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"trainable": "unet", "controlnet": None},
            "set trainable: controlnet and controlnet: {kind: canny}",
        ),
        ({"controlnet": None}, "belong together"),
        ({"task": "text-to-image"}, "set task: control"),
        ({"controlnet": {"kind": "segmentation"}}, "set task: control-labels"),
        ({"controlnet": {"kind": "cany"}}, "did you mean 'canny'"),
        ({"data": {"path": "PLAIN", "height": 16, "width": 16}}, "control_file_name"),
    ],
)
def test_what_does_not_fit_is_refused(
    folder: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = folder / "some-missing"
    plain.mkdir(exist_ok=True)
    for color in COLORS:
        Image.new("RGB", (16, 16), color).save(plain / f"{color}.png")
    rows: list[dict[str, str]] = [{"file_name": f"{color}.png", "text": color} for color in COLORS]
    rows[0]["control_file_name"] = "red.png"
    (plain / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = json.dumps(changes).replace('"PLAIN"', json.dumps(str(plain)))
    assert denoiser.main([str(config(folder, "refused", **json.loads(text)))]) == 2
    assert said in capsys.readouterr().err
