"""How far it is from the command to the network."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from typer.testing import CliRunner

import ldm
from ldm.cli.app import app
from ldm.models.unet import UNetDenoiser
from tests.support.tiny_generate import save_model

PACKAGE = str(Path(ldm.__file__).parent)
MAX_FRAMES = 7


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """For every call of the denoiser, the functions of ours that lead to it, outermost first."""
    found: list[list[str]] = []
    forward = UNetDenoiser.forward

    def watched(self: UNetDenoiser, *args: Any, **options: Any) -> Any:
        found.append(["UNetDenoiser.forward", *our_functions(sys._getframe(1))][::-1])
        return forward(self, *args, **options)

    monkeypatch.setattr(UNetDenoiser, "forward", watched)
    return found


def our_functions(frame: FrameType | None) -> list[str]:
    names = []
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            names.append(frame.f_code.co_qualname)
        frame = frame.f_back
    return names


def test_from_the_command_to_the_unet_are_seven_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stacks: list[list[str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = save_model(tmp_path)
    arguments = ["generate", "a red apple", "--model", str(model), "--num-inference-steps", "2"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert len(stacks) == 2
    for stack in stacks:
        way = stack[stack.index("generate") :]
        assert len(way) <= MAX_FRAMES, way
        assert way[-1] == "UNetDenoiser.forward"


def test_python_users_take_the_same_way(tmp_path: Path, stacks: list[list[str]]) -> None:
    ldm.load_pipeline(save_model(tmp_path)).generate("a red apple", num_inference_steps=1)
    (stack,) = stacks
    assert stack[:2] == ["Pipeline.generate", "Pipeline.make_images"]
    assert len(stack) < MAX_FRAMES
