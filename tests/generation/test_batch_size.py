"""How many images are made at once: what the user writes, and what fits in memory."""

from typing import Any

import pytest
import torch

from ldm.errors import LdmWarning, UserError
from ldm.generation.model_options import read_batch_size
from ldm.models.generation_settings import GenerationSettings
from ldm.pipeline.batches import Batch, Prompt, list_images, plan_batches
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.settings import MadeImage
from tests.support.tiny_models import make_sd1

STEPS: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(make_sd1(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def batches() -> list[Batch]:
    return batches_of(13)


def batches_of(num_images: int) -> list[Batch]:
    settings = GenerationSettings(num_images=num_images, seed=1, **STEPS)
    return plan_batches(list_images([Prompt("a red apple", settings)]), 10)


class Memory:
    """A hook in front of the UNet, which lets through as many rows as it holds."""

    def __init__(self, holds: int, error: RuntimeError) -> None:
        self.holds, self.error = holds, error
        self.rows: list[int] = []

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self.rows.append(len(args[0]))
        if len(args[0]) > self.holds:
            raise self.error


def made(pipeline: Pipeline, batches: list[Batch], memory: Memory | None = None) -> list[MadeImage]:
    hook = pipeline.denoiser.unet.conv_in.register_forward_pre_hook(memory or Memory(99, RuntimeError()))
    try:
        return list(pipeline.make_images(batches, batch_size=10, halve=True))
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
def test_a_batch_that_does_not_fit_is_halved(
    pipeline: Pipeline, batches: list[Batch], error: RuntimeError
) -> None:
    memory = Memory(3, error)
    with pytest.warns(LdmWarning, match="do not fit") as told:
        small = made(pipeline, batches, memory)
    assert [str(each.message) for each in told if each.category is LdmWarning] == [
        "10 images at once do not fit in memory, continuing with 5",
        "5 images at once do not fit in memory, continuing with 2",
    ]
    assert memory.rows[:2] == [10, 5], "tried again with half"
    assert max(memory.rows[2:]) == 2, "and never more afterwards"
    whole = made(pipeline, batches)
    assert [each.request for each in small] == [each.request for each in whole]
    assert [each.record for each in small] == [each.record for each in whole]


def test_half_of_a_batch_that_is_not_full(pipeline: Pipeline) -> None:
    """Half of its images: half of the batch size may be more than all of them."""
    memory = Memory(3, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.warns(LdmWarning, match="4 images at once do not fit in memory, continuing with 2$"):
        assert len(made(pipeline, batches_of(4), memory)) == 4
    assert memory.rows[:2] == [4, 2]


def test_one_image_that_does_not_fit_is_an_error(pipeline: Pipeline, batches: list[Batch]) -> None:
    with (
        pytest.warns(LdmWarning),
        pytest.raises(UserError, match="one image does not fit in memory: try --low-memory"),
    ):
        made(pipeline, batches, Memory(0, torch.OutOfMemoryError("CUDA out of memory.")))


def test_other_errors_are_raised(pipeline: Pipeline, batches: list[Batch]) -> None:
    with pytest.raises(RuntimeError, match="mat1"):
        made(pipeline, batches, Memory(3, RuntimeError("mat1 and mat2 shapes cannot be multiplied")))


@pytest.mark.parametrize(
    ("given", "low_memory", "expected"),
    [(None, False, 8), (None, True, 1), ("3", True, 3), ("auto", False, 8), ("auto", True, 8)],
)
def test_batch_sizes(given: str | None, low_memory: bool, expected: int) -> None:
    assert read_batch_size(given, low_memory=low_memory, device="cpu") == expected


@pytest.mark.parametrize("given", ["0", "-1", "many", "1.5", "", "٣"])
def test_invalid_batch_sizes(given: str) -> None:
    with pytest.raises(UserError, match=r"batch size .* must be auto or a whole number of at least 1"):
        read_batch_size(given)
