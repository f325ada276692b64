"""Reflow: pairs that a trained flow makes, a straighter flow from them, and a run that keeps its teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.diffusion.flow import FlowPath, FlowSettings
from ldm.diffusion.objective import ObjectiveSettings, diffusion_loss
from ldm.diffusion.sampling import denoise
from ldm.models.loading.model import ModelParts, load_parts, save_parts
from ldm.types import Conditioning, Denoiser, Step
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import DENOISER, write_config, write_squares
from train import denoiser
from train.loop.reflow import ReflowTeacher, flow_plan

PATH = FlowPath()


def embed(captions: list[str], size: tuple[int, int] = (8, 8)) -> Conditioning:
    return Conditioning(torch.zeros(len(captions), 1, 1))


def velocity_to_two_points(
    latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
) -> Tensor:
    """The velocity of the flow to data that is -1 or 1, each with probability 1/2; pixels are independent."""
    t = (timesteps / 1000).clamp(min=1e-3).view(-1, 1, 1, 1)
    x_0 = torch.tanh((1 - t) * latents / t**2)  # E[x_0 | x_t]
    return (latents - x_0) / t


class Network(nn.Module):
    """A velocity for every pixel alone, from its value and the time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1)
        )

    def forward(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        t = (timesteps / 1000).view(-1, 1, 1, 1).expand_as(latents)
        output: Tensor = self.layers(torch.stack([latents, t, (8 * latents).tanh()], dim=-1)).squeeze(-1)
        return output


def teacher_of(velocity: Denoiser, num_steps: int = 10) -> ReflowTeacher:
    return ReflowTeacher(velocity, embed, flow_plan(PATH, num_steps))


def curvature(velocity: Denoiser, noise: Tensor) -> float:
    """E |x_1 - x_0 - dx_t/dt|^2 along the flow's paths, 0 for straight ones: Liu et al. 2022, section 2.2."""
    plan, no_prompt = flow_plan(PATH, 20), embed([""])
    velocities: list[Tensor] = []

    def noting(
        latents: Tensor, timesteps: Tensor, given: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        velocities.append(velocity(latents, timesteps, given, step=step))
        return velocities[-1]

    (*_, (_, latents)) = denoise(noting, plan, noise, no_prompt)
    return float(torch.stack([(noise - latents - each).square().mean() for each in velocities]).mean())


def test_a_flow_that_is_trained_on_its_own_pairs_is_straighter() -> None:
    """And one step of it makes nearly what the teacher makes of the same noise in many."""
    torch.manual_seed(0)
    teacher, network = teacher_of(velocity_to_two_points, 20), Network()
    noise = torch.randn(64, 1, 8, 8)
    pairs = teacher.latents(noise, [""] * 64)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(250):
        timesteps = 1000 * torch.rand(64)
        loss = diffusion_loss(
            network, pairs, noise, timesteps, embed([""] * 64), PATH, ObjectiveSettings()
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fresh = torch.randn(16, 1, 8, 8)
    before = curvature(velocity_to_two_points, fresh)
    assert curvature(network, fresh) < 0.25 * before
    exact = teacher.latents(fresh, [""] * 16)
    with torch.no_grad():
        no_prompt = embed([""] * 16)
        one_step = fresh - network(fresh, torch.full((16,), 1000.0), no_prompt)
        teachers = fresh - velocity_to_two_points(fresh, torch.full((16,), 1000.0), no_prompt)
    assert float((one_step - exact).square().mean()) < 0.25 * float((teachers - exact).square().mean())


def test_pairs_are_a_function_of_the_noise_and_the_caption() -> None:
    teacher, noise = teacher_of(velocity_to_two_points), torch.randn(3, 1, 4, 4)
    together = teacher.latents(noise, ["a", "b", "c"])
    assert torch.equal(together[1:2], teacher.latents(noise[1:2], ["b"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reflow")
    write_squares(folder / "data")
    parts = make_sd1(folder / "tokenizer")
    save_parts(parts, folder / "ddpm")
    save_parts(flow(parts), folder / "flow")
    return folder


def flow(parts: ModelParts) -> ModelParts:
    parts.scheduler_config = FlowPath(FlowSettings()).scheduler_config()
    return parts


def config(folder: Path, name: str, **changes: Any) -> Path:
    tree: dict[str, Any] = {
        "base": str(folder / "flow"),
        "reflow": {"model": str(folder / "flow"), "num_inference_steps": 2},
        "trainable": "unet",
        "num_steps": 2,
        "save_every": 1,
        "optim": {"learning_rate": 0.003, "num_warmup_steps": 0, "ema_decay": 0.5},
        "model": {},
        "cache": {"folder": str(folder / "cache")},
    }
    return write_config(
        folder / f"{name}.yaml", DENOISER, folder / "data", folder / name, **{**tree, **changes}
    )


def test_a_run_trains_on_pairs_and_refuses_another_teacher_on_resuming(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "teacher").symlink_to(folder / "flow")
    reflow = {"model": str(folder / "teacher"), "num_inference_steps": 2}
    arguments = [str(config(folder, "run", reflow=reflow, num_steps=1))]
    assert denoiser.main(arguments) == 0
    assert load_parts(folder / "run/pipeline").scheduler_config["use_flow_sigmas"]
    parts = load_parts(folder / "flow")
    parts.denoiser.unet.conv_in.weight.data += 0.1
    save_parts(parts, folder / "changed")
    (folder / "teacher").unlink()
    (folder / "teacher").symlink_to(folder / "changed")
    capsys.readouterr()
    assert denoiser.main(arguments) == 2
    assert "the model has changed" in (said := capsys.readouterr().err) and "reflow.model" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "ddpm"}, "reflow is given, but the model is no rectified flow"),
        ({"reflow": {"model": "ddpm"}}, "is no rectified flow: name one trained with path=flow"),
        ({"task": "edit"}, "reflow needs task text-to-image, not edit"),
    ],
)
def test_what_is_no_flow_is_refused(
    folder: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "base" in changes:
        changes = {"base": str(folder / "ddpm")}
    if "reflow" in changes:
        changes = {"reflow": {"model": str(folder / "ddpm")}}
    assert denoiser.main([str(config(folder, "wrong", **changes))]) == 2
    assert message in capsys.readouterr().err
