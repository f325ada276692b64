"""Runs with weights of bfloat16 and moments of 8 bits: resumed to the last bit, and float32 again at the end."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.io.files import read_tensors
from ldm.models.loading.model import save_parts
from tests.support.tiny_models import make_sdxl
from tests.support.tiny_runs import COMMON, write_squares
from tests.support.tiny_training import PointLoss, make_settings, outcome, train
from train import denoiser
from train.loop.averages import WeightAverages
from train.loop.optim import apply_gradients, make_optimizer
from train.loop.precision import to_bfloat16
from train.loop.small_adamw import SmallAdamW
from train.loop.state import TrainState
from train.loop.steps import Batch
from train.run.run import Run
from train.run.signals import Interrupted
from train.settings.shared import OptimSettings

FORMATS: list[dict[str, Any]] = [
    {"weights": "bfloat16"},
    {"moments": "8bit", "ema_decay": 0},
    {"weights": "bfloat16", "moments": "8bit", "average": {"widths": [0.1]}},
]


class WideLoss(PointLoss):
    """With a matrix of 4,096 weights, whose moments are kept in 8 bits, in the number format of its weights."""

    def __init__(self, on_forward: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(on_forward=on_forward)
        torch.manual_seed(0)
        layers = [
            nn.Linear(4, 64),
            nn.SiLU(),
            nn.Dropout(0.2),
            nn.Linear(64, 64),
            nn.SiLU(),
            nn.Linear(64, 1),
        ]
        self.net = nn.Sequential(*layers)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        dtype = self.net[0].weight.dtype
        self.on_forward(self.num_forwards)
        self.num_forwards += 1
        guess = self.net(batch["x"].to(dtype)).squeeze(1).float()
        return {"loss": (guess - batch["x"].mean(dim=1)).square()}


def interrupt_at(stop: int) -> Callable[[int], None]:
    return lambda number: signal.raise_signal(signal.SIGTERM) if number == stop else None


@pytest.mark.parametrize("optim", FORMATS)
def test_a_resumed_run_is_the_same_to_the_last_bit(tmp_path: Path, optim: dict[str, Any]) -> None:
    train(make_settings(tmp_path / "whole", optim=optim), WideLoss())
    for stop in (2, 3):
        with pytest.raises(Interrupted):
            train(make_settings(tmp_path / "stopped", optim=optim), WideLoss(interrupt_at(stop)))
        torch.manual_seed(stop)
    state = train(make_settings(tmp_path / "stopped", optim=optim), WideLoss())
    (tensors, *rest), (others, *other_rest) = outcome(tmp_path / "whole"), outcome(tmp_path / "stopped")
    assert rest == other_rest and tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    short = torch.bfloat16 if "weights" in optim else torch.float32
    assert {t.dtype for name, t in tensors.items() if name.startswith("weights/")} == {short}
    assert {t.dtype for name, t in tensors.items() if name.startswith("average/")} == {torch.float32}
    matrix = tensors["optimizer/net.3.weight/exp_avg"]
    assert matrix.dtype == (torch.uint8 if "moments" in optim else torch.float32)
    assert {p.dtype for p in state.module.parameters()} == {torch.float32}


def test_the_seed_of_the_run_is_that_of_the_rounding(tmp_path: Path) -> None:
    state = Run(make_settings(tmp_path, seed=5, optim=FORMATS[0])).start(WideLoss())
    assert isinstance(state.optimizer, SmallAdamW) and state.optimizer.seed == 5


def test_a_network_is_cast_as_a_whole_and_gets_its_frozen_weights_back() -> None:
    module = nn.Module()
    module.trained, module.other = nn.Linear(5, 5), nn.Linear(5, 5)
    module.other.requires_grad_(False)
    module.trained.bias.requires_grad_(False)
    bias = module.trained.bias.detach().clone()
    parameters = list(module.parameters())
    undo = to_bfloat16(module)
    assert [p.dtype for p in parameters] == [torch.bfloat16] * 2 + [torch.float32] * 2
    assert all(one is two for one, two in zip(module.parameters(), parameters, strict=True))
    trained = module.trained.weight.detach().float()
    undo()
    assert all(p.dtype == torch.float32 for p in parameters)
    assert torch.equal(module.trained.bias, bias) and not torch.equal(bias, bias.bfloat16().float())
    assert torch.equal(module.trained.weight, trained)


def test_the_average_of_short_weights_is_long() -> None:
    """It follows steps far below the distance of neighbours, and weights and average survive being exchanged."""
    net = nn.Linear(3, 1).bfloat16()
    average = WeightAverages(net, decay=0.999)
    with torch.no_grad():
        net.weight.fill_(1.0)
        average.current["weight"].fill_(1.0)
        net.weight.add_(2**-7)
    for step in range(10_000, 10_005):
        average.update(step, torch.tensor(0.0))
    expected = 1 + 2**-7 * (1 - 0.999**5)
    assert average.current["weight"].dtype == torch.float32
    torch.testing.assert_close(average.current["weight"], torch.full((1, 3), expected), rtol=0, atol=2e-7)
    own, mean = net.weight.detach().clone(), average.current["weight"].clone()
    with average.applied():
        assert torch.equal(net.weight, mean.bfloat16()) and not torch.equal(net.weight, own)
    assert torch.equal(net.weight, own) and torch.equal(average.current["weight"], mean)
    average.update(10_005, torch.tensor(1.0))  # a skipped step
    assert torch.equal(average.current["weight"], mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_averaging_the_average_is_the_weights(dtype: torch.dtype) -> None:
    """It takes no memory, and what is done with an average still works."""
    net = nn.Linear(3, 1).to(dtype)
    average = WeightAverages(net, decay=0.0)
    with torch.no_grad():
        net.weight.fill_(0.5)
    average.update(1, torch.tensor(0.0))
    assert average.current["weight"].data_ptr() == net.weight.data_ptr()
    with average.applied():
        assert torch.equal(net.weight, torch.full((1, 3), 0.5, dtype=dtype))
    average.replace_applied({"weight": torch.full((1, 3), 0.25), "bias": torch.zeros(1)})
    with average.applied():
        assert torch.equal(net.weight, torch.full((1, 3), 0.25, dtype=dtype))


def test_other_programs_keep_float32(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"optim\.weights = bfloat16 in the program text_encoder: leave it out"
    ):
        make_settings(tmp_path, program="text_encoder", validation={}, optim={"weights": "bfloat16"})


def test_the_norm_of_short_gradients_is_that_of_long_ones() -> None:
    """A sum of 10,000 equal squares, which bfloat16 would round to three digits."""
    net = nn.Linear(100, 100, bias=False).bfloat16()
    net.weight.grad = torch.full_like(net.weight, 0.123)
    optimizer = make_optimizer(net, OptimSettings(weights="bfloat16"))
    state = TrainState(net, optimizer, WeightAverages(net, 0.0))
    norm, skipped, _ = apply_gradients(state, list(net.parameters()), torch.tensor(1.0), 1.0)
    assert float(norm) == pytest.approx(100 * float(torch.tensor(0.123).bfloat16()), rel=1e-6)
    assert not skipped and float(optimizer.grad_scale) == pytest.approx(float(norm))  # type: ignore[attr-defined]


def test_both_text_encoders_and_the_unet_of_a_tiny_sdxl(tmp_path: Path) -> None:
    """The layers of the first text encoder that nothing reads are saved as they were, not rounded."""
    save_parts(make_sdxl(tmp_path / "tokenizers"), tmp_path / "base")
    write_squares(tmp_path / "data")
    optim = {**COMMON["optim"], "weights": "bfloat16", "moments": "8bit", "num_warmup_steps": 0}
    tree = {
        **COMMON, "program": "denoiser", "trainable": "unet+text_encoder", "optim": optim, "num_steps": 1,
        "base": str(tmp_path / "base"), "run_dir": str(tmp_path / "run"), "cache": {"folder": str(tmp_path / "cache")},
        "data": {"path": str(tmp_path / "data"), "height": 16, "width": 16}, "preview": {"num_inference_steps": 1},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert denoiser.main([str(tmp_path / "config.yaml")]) == 0
    before, after = (
        read_tensors(folder / "text_encoder/model.safetensors")
        for folder in (tmp_path / "base", tmp_path / "run/pipeline")
    )
    assert before.keys() == after.keys() and all(t.dtype == torch.float32 for t in after.values())
    same = {name for name in before if torch.equal(before[name], after[name])}
    unread = {name for name in before if "layers.2." in name or "final_layer_norm" in name}
    assert same == unread and len(unread) == 18
