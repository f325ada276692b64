"""How many images are generated at once: what is recorded, and what fits in memory."""

from typing import Any

import pytest
import torch

from ldm.errors import LdmWarning, UserError
from ldm.generation.batches import PictureBatch, make_batches, plan_batches
from ldm.generation.model_options import read_batch_size
from ldm.generation.pictures import list_pictures
from ldm.generation.prompts import Prompt
from ldm.pipeline.pipeline import Pipeline
from tests.support.tiny_models import make_sd1

EVERYTHING: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(make_sd1(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def batches() -> list[PictureBatch]:
    prompts = [Prompt(prompt="a red apple", num_images=13, seed=1, **EVERYTHING)]
    return plan_batches(list_pictures(prompts), 10)


class Memory:
    """In front of the UNet: passes on as many rows as fit, and records them."""

    def __init__(self, holds: int, error: RuntimeError) -> None:
        self.holds, self.error = holds, error
        self.rows: list[int] = []

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self.rows.append(len(args[0]))
        if len(args[0]) > self.holds:
            raise self.error


def made(pipeline: Pipeline, batches: list[PictureBatch], memory: Memory | None = None) -> list[Any]:
    hook = pipeline.denoiser.unet.conv_in.register_forward_pre_hook(memory or Memory(99, RuntimeError()))
    try:
        return list(make_batches(pipeline, batches, batch_size=10))
    finally:
        hook.remove()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
    ],
)
def test_what_the_memory_does_not_hold_is_made_in_halves(
    pipeline: Pipeline, batches: list[PictureBatch], error: RuntimeError
) -> None:
    memory = Memory(3, error)
    with pytest.warns(LdmWarning, match="does not hold") as told:
        small = made(pipeline, batches, memory)
    ours = [str(each.message).split("hold ")[1] for each in told if each.category is LdmWarning]
    assert ours == [
        "10 pictures at once, going on with 5",
        "5 pictures at once, going on with 2",
    ]
    assert memory.rows[:2] == [10, 5], "it is tried again with half"
    assert max(memory.rows[2:]) == 2, "and not more afterwards"
    whole = made(pipeline, batches)
    assert [picture.number for picture, _, _ in small] == [picture.number for picture, _, _ in whole]
    assert [settings for _, _, settings in small] == [settings for _, _, settings in whole]


def test_of_a_batch_that_is_not_full_half_is_made(pipeline: Pipeline) -> None:
    """Half of the actual batch, because half of the batch size may still be larger than it."""
    prompts = [Prompt(prompt="a red apple", num_images=4, **EVERYTHING)]
    memory = Memory(3, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.warns(LdmWarning, match="4 pictures at once, going on with 2$"):
        assert len(made(pipeline, plan_batches(list_pictures(prompts), 10), memory)) == 4
    assert memory.rows[:2] == [4, 2]


def test_one_picture_that_does_not_fit_is_an_error(pipeline: Pipeline, batches: list[PictureBatch]) -> None:
    with (
        pytest.warns(LdmWarning),
        pytest.raises(UserError, match="does not hold one picture: try --low-memory"),
    ):
        made(pipeline, batches, Memory(0, torch.OutOfMemoryError("CUDA out of memory.")))


def test_another_error_is_not_taken_for_it(pipeline: Pipeline, batches: list[PictureBatch]) -> None:
    with pytest.raises(RuntimeError, match="mat1"):
        made(pipeline, batches, Memory(3, RuntimeError("mat1 and mat2 shapes cannot be multiplied")))


@pytest.mark.parametrize(
    ("given", "low_memory", "expected"),
    [(None, False, 8), (None, True, 1), ("3", True, 3), ("auto", False, 8), ("auto", True, 8)],
)
def test_what_is_written(given: str | None, low_memory: bool, expected: int) -> None:
    assert read_batch_size(given, low_memory=low_memory, device="cpu") == expected


@pytest.mark.parametrize("given", ["0", "-1", "many", "1.5", "", "٣"])
def test_what_is_no_batch_size(given: str) -> None:
    with pytest.raises(UserError, match=r"batch size .* must be auto or a whole number of at least 1"):
        read_batch_size(given)
