"""Distilling a base model into one for few steps: resuming, processes, cache, and the images of stock pipelines."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.config import load_settings
from ldm.data.batches import collate
from ldm.data.order import SampleKey
from ldm.diffusion.flow import FlowPath
from ldm.export.verify.readers import trial_outputs as read_trial
from ldm.export.verify.trial import largest_difference, trial_for, trial_inputs, trial_outputs
from ldm.models.identity import changed_parts
from ldm.models.loading.model import load_parts, save_parts
from ldm.pipeline.pipeline import Pipeline
from tests.support.slow_cases import rest_slow
from tests.support.tiny_models import make_sd1, make_sd2
from tests.support.tiny_runs import DENOISER, write_config, write_squares
from train import denoiser
from train.data.denoiser_data import read_samples
from train.loop.denoiser_loss import DenoiserLoss
from train.run.denoiser_model import make_loss
from train.run.held_model import HeldModel, held_model_of
from train.run.run import Run
from train.settings.denoiser import DenoiserSettings

UNET, LORA = {"trainable": "unet"}, {"trainable": "lora", "lora": {"rank": 2}}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {**LORA, "distill": {"guidance_scale": [3, 3]}},
    "embedded, average": {
        **UNET,
        "distill": {"guidance_scale": [2, 6], "embed_guidance": True, "target": "average"},
    },
    "no teacher": {**LORA, "distill": {"trajectory": "data"}},
    "flow": {**LORA, "base": "flow base", "distill": {}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and the base models."""
    folder = tmp_path_factory.mktemp("distillation")
    write_squares(folder / "data")
    save_parts(make_sd2(folder / "tokenizer"), folder / "base")
    flow = make_sd1(folder / "tokenizer")
    flow.scheduler_config = FlowPath().scheduler_config()
    save_parts(flow, folder / "flow base")
    return folder


def make_config(folder: Path, name: str, **changes: Any) -> Path:
    base = str(folder / changes.pop("base", "base"))
    tree = {
        "base": base,
        "model": {},
        "num_steps": 3,
        "cache": {"folder": str(folder / "cache")},
        "save_every": 2,
    }
    tree |= {"optim": {"learning_rate": 0.01, "num_warmup_steps": 0, "ema_decay": 0.5}}
    return write_config(
        folder / f"{name}.yaml", DENOISER, folder / "data", folder / name, **{**tree, **changes}
    )


def newest(run_dir: Path) -> Path:
    return sorted((run_dir / "checkpoints").iterdir())[-1]


@pytest.fixture(scope="module")
def run_of(folder: Path) -> Callable[[str], Path]:
    """Makes an unbroken run of a kind, once."""

    @cache
    def made(kind: str) -> Path:
        assert denoiser.main([str(make_config(folder, kind, **KINDS[kind]))]) == 0
        return folder / kind

    return made


@pytest.mark.parametrize("kind", rest_slow(KINDS, "embedded, average"))
def test_a_stopped_run_ends_with_the_same_weights(
    folder: Path, run_of: Callable[[str], Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(folder, f"{kind} broken", preview_every=2, **KINDS[kind])
    with monkeypatch.context() as patch:
        patch.setattr(denoiser, "write_preview", lambda *args, **options: signal.raise_signal(signal.SIGTERM))
        assert denoiser.main([str(config)]) == 128 + signal.SIGTERM
    assert denoiser.main([str(config)]) == 0
    for file in ("weights", "average", "optimizer"):
        left, right = (
            load_file(newest(run) / f"{file}.safetensors")
            for run in (run_of(kind), folder / f"{kind} broken")
        )
        assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("kind", rest_slow(KINDS, "embedded, average"))
def test_the_result_is_a_model_for_few_steps(folder: Path, run_of: Callable[[str], Path], kind: str) -> None:
    """Its folder has the sampler and the settings for them, and a stock pipeline makes its images."""
    pipeline = run_of(kind) / "pipeline"
    parts = load_parts(pipeline)
    embeds = kind.startswith("embedded")
    defaults = parts.defaults
    assert (defaults.scheduler, defaults.num_inference_steps) == ("lcm", 4)
    assert defaults.guidance_scale == (4.0 if embeds else 1.0) and parts.denoiser.embeds_guidance is embeds
    if kind == "flow":  # a stock pipeline has no such sampler
        Pipeline(parts).generate("red", progress=False)
        return
    assert parts.scheduler_config["_class_name"] == "LCMScheduler"
    assert parts.scheduler_config["prediction_type"] == "v_prediction"
    if not embeds:
        save_parts(parts, folder / f"{kind} model", replace=True)
        pipeline = folder / f"{kind} model"
    trial = trial_for(parts)
    save_file(trial_inputs(parts, trial), folder / "inputs")
    stock = StableDiffusionPipeline.from_pretrained(pipeline, safety_checker=None)
    theirs = read_trial(stock, {"trial": asdict(trial), "inputs": str(folder / "inputs")})
    assert largest_difference(trial_outputs(parts, trial), theirs) <= 1


def make(folder: Path, **changes: Any) -> DenoiserLoss:
    """The loss of a run that is about to start; the text encoder runs in each step."""
    settings: DenoiserSettings = load_settings(DenoiserSettings, make_config(folder, "loss", **changes))
    loss = make_loss(settings).train()
    loss.use_average({name: p.detach() * 0.9 for name, p in loss.named_parameters() if p.requires_grad})
    return loss


def read_items(folder: Path, name: str, **changes: Any) -> tuple[DenoiserLoss, list[dict[str, Any]]]:
    """The samples of an epoch, the last one without its caption, and a loss with what was read for them."""
    settings: DenoiserSettings = load_settings(
        DenoiserSettings, make_config(folder, name, **KINDS["lora"], **changes)
    )
    run, loss = Run(settings), make_loss(settings)
    data = read_samples(run, settings, loss)
    items = [data.dataset[SampleKey(0, index)] for index in range(7)]
    items[-1]["caption"] = ""
    return loss.train(), items


@pytest.fixture(scope="module")
def cached(folder: Path) -> tuple[DenoiserLoss, list[dict[str, Any]]]:
    """From the cache."""
    return read_items(folder, "cached")


@pytest.fixture
def items(cached: tuple[DenoiserLoss, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return cached[1]


def losses(loss: DenoiserLoss, items: list[dict[str, Any]]) -> Tensor:
    return loss(collate(items))["loss"].detach()


@pytest.mark.parametrize("kind", KINDS)
def test_a_samples_loss_does_not_depend_on_its_batch(
    folder: Path, kind: str, items: list[dict[str, Any]]
) -> None:
    """Processes and micro-batches cut batches differently."""
    loss = make(folder, **KINDS[kind])
    alone = torch.cat([losses(loss, [item]) for item in items])
    assert torch.allclose(losses(loss, items), alone, rtol=1e-4)


def test_the_cache_changes_no_loss(folder: Path, cached: tuple[DenoiserLoss, list[dict[str, Any]]]) -> None:
    encoding, decoded = read_items(folder, "uncached", cache={"enabled": False})
    assert torch.allclose(losses(encoding, decoded), losses(*cached), rtol=1e-3)


def test_the_average_gives_the_target_only_in_training(folder: Path, items: list[dict[str, Any]]) -> None:
    """While the averaged weights are measured, they are in the student's place."""
    loss = make(folder, **KINDS["embedded, average"])
    by_average = losses(loss, items)
    loss.eval()
    by_student = losses(loss, items)
    assert not torch.allclose(by_average, by_student, rtol=1e-3)
    loss.train()
    loss.use_average({name: p.detach() for name, p in loss.named_parameters() if p.requires_grad})
    assert torch.allclose(losses(loss, items), by_student, rtol=1e-5)


def test_the_teacher_shares_the_weights_that_do_not_change(
    folder: Path, cached: tuple[DenoiserLoss, list[dict[str, Any]]]
) -> None:
    for loss, shares in ((cached[0], True), (make(folder, **KINDS["embedded, average"]), False)):
        assert loss.distillation is not None and loss.distillation.teacher is not None
        student = {id(p) for p in loss.denoiser.parameters()}
        teacher = list(loss.distillation.teacher.parameters())
        assert all((id(p) in student) is shares and not p.requires_grad for p in teacher)
        assert not any("lora" in name for name, _ in loss.distillation.teacher.named_parameters())


def test_a_run_whose_teacher_has_changed_is_not_resumed(folder: Path) -> None:
    """Its weights, which the checkpoints of a whole UNet do not hold, or the guidance scale that it takes from it."""
    changes = {**UNET, "base": "other base", "distill": {}}

    def held() -> HeldModel:
        settings: DenoiserSettings = load_settings(DenoiserSettings, make_config(folder, "held", **changes))
        return held_model_of(settings, make_loss(settings))

    shutil.copytree(folder / "base", folder / "other base")
    first = held()
    assert held() == first
    parts = load_parts(folder / "base")
    parts.defaults = parts.defaults.model_copy(update={"guidance_scale": 2.5})
    save_parts(parts, folder / "other base", replace=True)
    assert changed_parts(first.frozen, held().frozen) == ["teacher"]
    parts = load_parts(folder / "base")
    parts.denoiser.unet.conv_in.bias.data += 1
    save_parts(parts, folder / "other base", replace=True)
    assert changed_parts(first.frozen, held().frozen) == ["teacher"]


def test_the_student_begins_as_the_teacher(
    folder: Path, cached: tuple[DenoiserLoss, list[dict[str, Any]]]
) -> None:
    """A LoRA and the embedding of the guidance scale have no effect at first."""
    fixed = {"guidance_scale": [3, 3]}
    whole = make(folder, **UNET, distill={**fixed, "embed_guidance": True})
    assert torch.allclose(losses(whole, cached[1]), losses(*cached), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill": {}, "trainable": "unet+text_encoder"}, "distill trains the UNet"),
        (
            {"distill": {}, **UNET, "objective": {"timestep_shift": 2.0}},
            "objective has no effect with distill",
        ),
        ({**LORA, "distill": {"embed_guidance": True}}, "set trainable: unet"),
        ({**UNET, "distill": {"guidance_scale": [6, 2]}}, "give two rising ones"),
        ({**UNET, "base": "embedded, average/pipeline", "distill": {}}, "it is distilled already"),
    ],
)
def test_what_cannot_be_distilled_is_refused(
    folder: Path,
    run_of: Callable[[str], Path],
    changes: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "base" in changes:
        run_of("embedded, average")
    assert denoiser.main([str(make_config(folder, "wrong", **changes))]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "wrong").exists()


@pytest.mark.slow
def test_the_adapter_says_how_it_was_made(run_of: Callable[[str], Path]) -> None:
    adapter = json.loads((run_of("lora") / "pipeline" / "adapter.json").read_text())
    assert adapter["scheduler_config"]["original_inference_steps"] == 50
