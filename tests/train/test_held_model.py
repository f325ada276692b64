"""A run does not forget what it stands on: the parts of its model that no checkpoint holds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from ldm.config import validate
from ldm.errors import UserError
from ldm.models.adapters.lora import LoraSettings, add_lora, lora_weights
from ldm.models.adapters.lora_files import write_lora_diffusers
from ldm.models.identity import changed_parts
from ldm.models.loading.model import load_parts, save_parts
from tests.support.tiny_loras import disturb, networks_of
from tests.support.tiny_models import make_sd1
from tests.support.tiny_training import PointLoss, Points, make_settings
from train.run.checkpoints import checkpoints
from train.run.denoiser_model import make_loss
from train.run.held_model import HeldModel, check_model_of, check_same_model, decode_held_model, held_model
from train.run.run import Run
from train.settings.denoiser import DenoiserSettings

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held")
    save_parts(make_sd1(folder / "tokenizer"), folder / "model")
    return folder / "model"


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def add_to_weights(component: str, stem: str) -> Change:
    def change(model: Path) -> None:
        path = model / component / f"{stem}.safetensors"
        tensors = load_file(path)
        name = max(tensors)
        save_file(tensors | {name: tensors[name] + 1e-3}, path)

    return change


def set_in(name: str, **changes: Any) -> Change:
    def change(model: Path) -> None:
        path = model / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


OF_UNET = add_to_weights("unet", "diffusion_pytorch_model")
OF_VAE = add_to_weights("vae", "diffusion_pytorch_model")
OF_TEXT = add_to_weights("text_encoder", "model")
SCHEDULE = set_in("scheduler/scheduler_config.json", beta_end=0.02)
CASES: dict[str, tuple[dict[str, Any], Change, list[str], list[str]]] = {
    "a LoRA's UNet": ({"trainable": "lora"}, OF_UNET, ["unet"], []),
    "a LoRA's VAE": ({"trainable": "lora"}, OF_VAE, ["vae"], []),
    "a LoRA's schedule": ({"trainable": "lora"}, SCHEDULE, ["scheduler"], []),
    "a LoRA's pad token": (
        {"trainable": "lora"},
        set_in("tokenizer/tokenizer_config.json", pad_token="a</w>"),
        ["tokenizer"],
        [],
    ),
    "a trained UNet's text encoder": ({"trainable": "unet"}, OF_TEXT, ["text_encoder"], []),
    "a trained UNet's weights": ({"trainable": "unet"}, OF_UNET, [], ["initial weights of unet"]),
    "a trained UNet's activation": (
        {"trainable": "unet"},
        set_in("unet/config.json", act_fn="gelu"),
        ["unet"],
        [],
    ),
    "a trained text encoder's activation": (
        {"trainable": "text_encoder"},
        set_in("text_encoder/config.json", hidden_act="gelu"),
        ["text_encoder"],
        [],
    ),
    "the defaults": (
        {"trainable": "unet"},
        set_in("ldm.json", defaults={"guidance_scale": 2.0}),
        [],
        ["defaults"],
    ),
}


def settings_of(folder: Path, **changes: Any) -> DenoiserSettings:
    tree = {
        "program": "denoiser",
        "run_dir": str(folder / "run"),
        "num_steps": 200,
        "data": {"path": "images", "height": 16, "width": 16},
    }
    return validate(DenoiserSettings, tree | changes)


def held(settings: DenoiserSettings) -> HeldModel:
    return held_model(settings, make_loss(settings).parts)


@pytest.mark.parametrize("name", CASES)
def test_a_changed_base_is_named(model: Path, tmp_path: Path, name: str) -> None:
    changes, change, frozen, started_from = CASES[name]
    settings = settings_of(tmp_path, base=str(model), **changes)
    before = held(settings)
    change(model)
    now = held(settings)
    assert changed_parts(before.frozen, now.frozen) == frozen
    assert changed_parts(before.started_from, now.started_from) == started_from


def test_a_model_in_other_files_is_the_same(model: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, base=str(model), trainable="unet")
    before = held(settings)
    save_parts(load_parts(model), model, max_shard_size="20KB", replace=True)
    assert held(settings) == before
    assert decode_held_model(before.encoded) == before


@pytest.mark.parametrize(
    ("change", "part"), [(OF_VAE, "vae"), (OF_TEXT, "text_encoder")], ids=["autoencoder", "text encoder"]
)
def test_changed_parts_of_a_run_from_scratch_are_named(
    model: Path, tmp_path: Path, change: Change, part: str
) -> None:
    parts = {"autoencoder": str(model), "text_encoder": str(model)}
    shape = {"block_out_channels": [8, 16], "attention": [False, True], "attention_head_dim": 8}
    settings = settings_of(tmp_path, parts=parts, model={**shape, "norm_num_groups": 4})
    before = held(settings)
    assert held(settings) == before and not before.started_from
    change(model)
    assert changed_parts(before.frozen, held(settings).frozen) == [part]


def test_a_lora_to_start_from_counts_by_its_scale_alone(model: Path, tmp_path: Path) -> None:
    def write(alpha: float, seed: int) -> None:
        parts = load_parts(model)
        add_lora(networks_of(parts), LoraSettings(rank=2, alpha=alpha), seed)
        disturb(networks_of(parts))
        write_lora_diffusers(lora_weights(networks_of(parts)), tmp_path / "start.safetensors")

    write(2, 0)
    settings = settings_of(
        tmp_path, base=str(model), trainable="lora", lora={"start": str(tmp_path / "start.safetensors")}
    )
    before = held(settings)
    write(2, 1)
    assert held(settings).frozen == before.frozen
    assert changed_parts(before.started_from, held(settings).started_from) == ["lora.start"]
    write(4, 1)
    assert changed_parts(before.frozen, held(settings).frozen) == ["lora"]


# Resuming


def train(run_dir: Path, model: HeldModel | None, num_steps: int) -> Run:
    constant = {"lr_schedule": "constant"}
    run = Run(make_settings(run_dir, num_steps=num_steps, optim=constant))
    if model:
        run.use_model(model)
    run.train(PointLoss(), Points(), bucket_of=["all"] * 7, preview=lambda state, path: None)
    return run


def test_a_run_whose_model_has_changed_is_refused_and_not_touched(tmp_path: Path) -> None:
    train(tmp_path, HeldModel({"vae": "1", "unet": "2"}), 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"the model has changed since .* was started: vae: .*--fork"):
        train(tmp_path, HeldModel({"vae": "0", "unet": "2"}), 4)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert train(tmp_path, HeldModel({"vae": "1", "unet": "2"}), 4).changes[0].startswith("num_steps was 2")


def test_what_makes_no_difference_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    train(tmp_path, HeldModel({"vae": "1"}, {"lora.start": "1"}), 2)
    run = train(tmp_path, HeldModel({"vae": "1"}, {"lora.start": "2"}), 4)
    assert any(line.startswith("lora.start changed since") for line in run.changes)


def test_a_run_of_an_older_version_says_that_its_model_was_not_compared(tmp_path: Path) -> None:
    train(tmp_path, None, 2)
    run = train(tmp_path, HeldModel({"vae": "1"}), 4)
    assert any("do not record the model" in line for line in run.changes)
    with pytest.raises(UserError, match="the model has changed"):  # recorded from then on
        check_same_model(tmp_path, HeldModel({"vae": "2"}))


@pytest.mark.parametrize("data", [b"", b"[]", b'{"version": 1}', b'{"frozen": 3}', b"[" * 9999, b"\xff"])
def test_a_damaged_record_is_no_record(data: bytes) -> None:
    assert decode_held_model(data) is None


def test_a_checkpoint_is_not_combined_with_another_model(tmp_path: Path) -> None:
    train(tmp_path, HeldModel({"vae": "1"}), 2)
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    check_model_of(newest, HeldModel({"vae": "1"}, {"defaults": "2"}))
    with pytest.raises(UserError, match=r"the model has changed since .*step-000002 was written: vae"):
        check_model_of(newest, HeldModel({"vae": "2"}))
