"""Settings that contradict each other are refused in one line that says how to fix it."""

from typing import Any

import pytest
import yaml

from ldm.config import Settings, to_yaml, validate
from ldm.diffusion.objective import ObjectiveSettings
from ldm.errors import UserError
from train.settings.denoiser import DenoiserSettings
from train.settings.schema import settings_of
from train.settings.shared import OptimSettings

DENOISER: dict[str, Any] = {
    "program": "denoiser", "run_dir": "run", "num_steps": 200, "base": "emoji", "data": {"path": "photos"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"num_steps": 100},
            "optim.num_warmup_steps = 100 of num_steps = 100: the learning rate would never stop rising",
        ),
        ({"num_steps": 60}, "set optim.num_warmup_steps=3"),
        (
            {"model": {"block_out_channels": [16, 32], "attention": [False, True]}},
            "model is given, but base determines it: leave it out",
        ),
        ({"schedule": {"prediction_type": "v_prediction"}}, "schedule is given, but base determines it"),
        ({"defaults": {"guidance_scale": 5}}, "defaults is given, but base determines it"),
        ({"validation": {"every": 5}}, "set data.holdout_fraction above 0"),
        ({"parts": {"autoencoder": "a", "text_encoder": "b"}}, "give either base: MODEL or parts"),
        (
            {"optim": {"weights": "bfloat16"}, "trainable": "lora"},
            "optim.weights = bfloat16 with trainable: lora, which has few weights: leave it out",
        ),
        (
            {"optim": {"weights": "bfloat16"}, "distill": {}},
            "optim.weights = bfloat16 cannot be used with distill",
        ),
        (
            {"optim": {"weights": "bfloat16"}, "mixed_precision": "fp16"},
            "optim.weights = bfloat16 with mixed_precision = fp16: set mixed_precision=bf16",
        ),
    ],
)
def test_a_contradiction_is_one_short_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        validate(DenoiserSettings, {**DENOISER, **changes}, "a.yaml")
    text = str(error.value)
    assert said in text and text.startswith("a.yaml: ") and len(text) < 250 and "photos" not in text


@pytest.mark.parametrize(
    ("kind", "tree", "said"),
    [
        (
            OptimSettings,
            {"lr_schedule": "constant", "final_lr_fraction": 0.5},
            "final_lr_fraction = 0.5 has no effect",
        ),
        (OptimSettings, {"ema_decay": 0, "average": {"widths": [0.1]}}, "average.widths asks for some"),
        (
            OptimSettings,
            {"optimizer": "adamw_8bit", "moments": "8bit"},
            "moments = 8bit is for optimizer = adamw: leave it out",
        ),
        (ObjectiveSettings, {"min_snr_gamma": 3}, "min_snr_gamma = 3.0 has no effect: set weighting=min_snr"),
        (
            ObjectiveSettings,
            {"weighting": "min_snr", "p2_k": 3},
            "p2_k = 3.0 has no effect: set weighting=p2",
        ),
        (ObjectiveSettings, {"huber_delta": 1}, "set loss=huber or leave it out"),
        (ObjectiveSettings, {"logit_mean": 1}, "set timestep_distribution=logit_normal"),
    ],
)
def test_a_setting_without_effect_is_refused(kind: type[Settings], tree: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        validate(kind, tree)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("program", "changes", "key"),
    [
        ("autoencoder", {"validation": {"every": 2}}, "validation.every"),
        ("text_encoder", {"validation": {"every": 2, "keep_best": True}}, "validation.every"),
        ("text_encoder", {"validation": {"batch_size": 2}}, "validation.batch_size"),
        ("autoencoder", {"sources": {"masks": "masks"}}, "data.sources.1.masks"),
        ("text_encoder", {"sources": {"alpha_mask": True}}, "data.sources.1.alpha_mask"),
        ("autoencoder", {"sources": {"alpha_mask": True}}, "data.sources.1.alpha_mask"),
        ("text_encoder", {"sources": {"loss_weight": 2}}, "data.sources.1.loss_weight"),
        ("autoencoder", {"sources": {"loss_weight": 2}}, None),
        ("denoiser", {"sources": {"loss_weight": 2, "alpha_mask": True}, "validation": {"every": 2}}, None),
    ],
)
def test_what_a_program_does_not_read_is_refused(
    program: str, changes: dict[str, Any], key: str | None
) -> None:
    source = {"path": "b", **changes.pop("sources", {})}
    data = {"sources": [{"path": "a"}, source], "holdout_fraction": 0.1}
    tree = {"program": program, "run_dir": "run", "num_steps": 200, "data": data, **changes}
    kind = settings_of(program)
    if program == "denoiser":
        tree["base"] = "emoji"
    if key is None:
        validate(kind, tree)
        return
    with pytest.raises(UserError, match=rf"{key} has no effect in the program {program}: leave it out"):
        validate(kind, tree)


def test_settings_that_agree_load_back_from_what_they_are_saved_as() -> None:
    settings = validate(DenoiserSettings, {**DENOISER, "num_steps": 101})
    assert validate(DenoiserSettings, yaml.safe_load(to_yaml(settings))) == settings
