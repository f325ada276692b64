"""Between two rows of metrics no training step waits for the device: no value is read, no copy blocks.

The device is torch's `meta`, which has no values: reading one (`item`, `bool`, `cpu`, `nonzero`) raises an error.
"""

import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.config import validate
from ldm.data.batches import collate
from ldm.diffusion.path import DDPMPath
from ldm.types import Conditioning
from tests.support.tiny_models import make_sd1
from train.loop.averages import WeightAverages
from train.loop.denoiser_loss import DenoiserLoss
from train.loop.optim import make_optimizer
from train.loop.state import TrainState
from train.loop.steps import Batch, train_steps
from train.run.after_steps import AfterSteps
from train.run.log import TrainLog
from train.run.trainable import choose_trained
from train.settings.denoiser import DenoiserSettings

META = torch.device("meta")
KINDS: dict[str, dict[str, Any]] = {
    "unet": {"objective": {"offset_noise": 0.1}, "optim": {"average": {"widths": [0.05, 0.1]}}},
    "lora": {"lora": {"rank": 2, "dropout": 0.1, "text_encoder": True}},
}


class Distant(Accelerator):
    """Accelerate for one process, on a device that cannot be read."""

    @property
    def device(self) -> torch.device:
        return META


class NoBlockingCopies(TorchDispatchMode):
    """Refuses copies to the device that the host would wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device != META:
            assert kwargs.get("device") != META or kwargs.get("non_blocking"), "a blocking copy"
        if func is torch.ops.aten.copy_.default and args[0].device == META:
            assert args[1].device == META or (args[2:] or [False])[0], "a blocking copy"
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def fused_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses fused optimizers on meta, for which their kernels exist."""
    module = sys.modules[torch.optim.Optimizer.__module__]
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: ["cpu", "cuda", "meta"])


def make_loss(folder: Path, trainable: str) -> tuple[DenoiserLoss, DenoiserSettings]:
    tree = {
        "program": "denoiser", "run_dir": str(folder / "run"), "base": "tiny", "trainable": trainable, "num_steps": 9,
        "global_batch_size": 3, "max_micro_batch": 2, "log_every": 100, "data": {"path": "none"}, **KINDS[trainable],
    }  # fmt: skip
    tree["optim"] = {"num_warmup_steps": 2, **tree.get("optim", {})}
    settings = validate(DenoiserSettings, tree)
    parts = make_sd1(folder)
    groups = choose_trained(parts, settings, seed=0, learning_rate=1e-3)
    module = DenoiserLoss(parts, settings, DDPMPath(settings.schedule), groups)
    if not settings.trains_text_encoder:
        module.prompts = lambda captions: Conditioning(torch.zeros(len(captions), 16, 32))
    return module, settings


def to_meta(module: DenoiserLoss) -> DenoiserLoss:
    """Every weight without its values; the optimizer gets the new ones."""
    before = dict(module.named_parameters())
    module.to(META).train()
    after = dict(module.named_parameters())
    replaced = {parameter: after[name] for name, parameter in before.items()}
    for group in module.groups:
        group["params"] = [replaced[parameter] for parameter in group["params"]]
    return module


def batch() -> Batch:
    """Three samples as they come from a loader."""
    generator = torch.Generator().manual_seed(0)

    def sample(number: int) -> dict[str, Any]:
        normal = torch.randn(4, 4, 8, 8, generator=generator)
        return {
            "sample_id": f"s{number}", "moments": normal[:2].flatten(0, 1), "posterior_noise": normal[2],
            "noise": normal[3], "offset": normal[0, :, 0, 0], "position": 0.3 * number, "caption": "a red apple",
            "weight": 1.0, "loss_weight": 1.0,
        }  # fmt: skip

    return collate([sample(number) for number in range(3)])


def steps(module: DenoiserLoss, settings: DenoiserSettings, batches: Iterator[Batch]) -> Iterator[None]:
    """Optimizer steps, each followed by everything that a run does after it."""
    accelerator = Distant(cpu=True)
    averages = WeightAverages(module, settings.optim.ema_decay, settings.optim.average)
    state = TrainState(module, make_optimizer(module, settings.optim), averages)
    log = TrainLog(settings.run_dir, start_step=0, num_steps=settings.num_steps, main=True)
    after = AfterSteps(
        settings, accelerator, state, log, preview=_never, validate=None, save=lambda state: None
    )
    for record in train_steps(state, module, batches, accelerator, settings):
        yield after(record, stopping=False)


def _never(state: TrainState, path: Path) -> None:
    raise AssertionError("no picture is due")


@pytest.mark.parametrize("trainable", KINDS)
def test_no_step_waits_for_the_device(tmp_path: Path, trainable: str) -> None:
    module, settings = make_loss(tmp_path, trainable)
    done = steps(to_meta(module), settings, cycle([batch()]))
    next(done)  # the first step copies what then stays on the device
    with NoBlockingCopies():
        assert len(list(islice(done, 2))) == 2


@pytest.mark.parametrize("ask", [Tensor.item, Tensor.cpu, bool, lambda t: t.nonzero()])
def test_the_device_does_refuse_to_be_asked(ask: Any) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        ask(torch.ones((), device=META) > 0)


def test_blocking_copies_are_seen() -> None:
    with NoBlockingCopies():
        torch.ones(2).to(META, non_blocking=True)
        with pytest.raises(AssertionError, match="blocking"):
            torch.ones(2).to(META)
