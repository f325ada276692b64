"""A denoiser in overlapping windows: they cover the canvas, and leave no seams."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.diffusion.windows import Window, in_windows, list_windows
from ldm.types import Conditioning, Step

STEP = Step(0, 0, 5.0, 1.0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def local(
    latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
) -> Tensor:
    """Sees each latent alone, with its own conditioning."""
    assert conditioning.concat is not None and step is STEP
    return torch.sin(latents) + conditioning.concat * timesteps.view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("size", "side", "overlap"),
    [((9, 9), 4, 1), ((5, 21), 8, 3), ((16, 17), 16, 15), ((3, 3), 8, 2), ((12, 8), 8, 0)],
)
def test_a_denoiser_without_surroundings_gives_the_same_in_windows(
    size: tuple[int, int], side: int, overlap: int
) -> None:
    latents, concat, timesteps = normal(2, 4, *size), normal(2, 3, *size, seed=1)[:, :1], torch.tensor([3, 7])
    windows = list_windows(*size, side, overlap)
    told = Conditioning(torch.zeros(2, 1, 1), concat=concat)
    found = in_windows([local] * len(windows), windows)(latents, timesteps, told, step=STEP)
    torch.testing.assert_close(found, local(latents, timesteps, told, step=STEP))


@pytest.mark.parametrize(
    ("length", "side", "overlap"), [(100, 16, 4), (17, 16, 15), (64, 16, 0), (1000, 7, 3)]
)
def test_neighbours_overlap_by_what_is_asked_for_and_no_window_is_cut(
    length: int, side: int, overlap: int
) -> None:
    windows = list_windows(1, length, side, overlap)
    assert {each.width for each in windows} == {side}
    assert (windows[0].left, windows[-1].left) == (0, length - side)
    assert all(one.left + side - other.left >= overlap for one, other in pairwise(windows))
    assert len(windows) <= 1 + -(-(length - side) // (side - overlap))


def test_a_window_that_is_no_larger_than_the_overlap_is_refused() -> None:
    with pytest.raises(ValueError, match="windows of 4 cannot overlap by 4"):
        list_windows(9, 9, 4, 4)


def test_the_border_of_a_window_leaves_no_seam() -> None:
    """Each window adds an offset of its own; the sum must go from one to the next in steps as small as the ramp's."""
    windows = list_windows(1, 40, 16, 8)
    numbers = iter(range(len(windows)))

    def offset(number: int) -> Any:
        def denoiser(
            latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
        ) -> Tensor:
            return torch.full_like(latents, float(number))

        return denoiser

    found = in_windows([offset(next(numbers)) for _ in windows], windows)(
        torch.zeros(1, 1, 1, 40), torch.zeros(1), Conditioning(torch.zeros(1, 1, 1))
    )
    steps = found.diff()
    assert found[0, 0, 0, 0] == 0 and found[0, 0, 0, -1] == len(windows) - 1
    assert steps.min() >= -1e-6 and steps.max() < 2 / 8


def test_a_window_is_a_view() -> None:
    canvas = torch.zeros(1, 4, 6)
    Window(1, 2, 2, 3).cut(canvas).add_(1)
    assert canvas.sum() == 6 and canvas[0, 1, 2] == 1 and canvas[0, 0].sum() == 0
