"""Seam energy against images whose seams are known."""

import numpy as np
import pytest
from PIL import Image

from ldm.evaluation.seams import seam_energy


def test_a_step_is_a_seam_and_noise_is_none() -> None:
    noise = np.random.default_rng(0).integers(80, 121, (64, 64, 3)).astype(np.uint8)
    assert 0.9 < seam_energy(Image.fromarray(noise), column=32) < 1.1
    stepped = noise.copy()
    stepped[:, 32:] += 100
    assert seam_energy(Image.fromarray(stepped), column=32) > 5
    assert seam_energy(Image.fromarray(stepped.transpose(1, 0, 2)), row=32) == pytest.approx(
        seam_energy(Image.fromarray(stepped), column=32)
    )
    assert 0.9 < seam_energy(Image.fromarray(stepped), column=31) < 1.1


def test_a_plain_image_has_none() -> None:
    plain = Image.new("RGB", (8, 8), "white")
    assert seam_energy(plain, column=4) == 0
    for wrong in ({}, {"column": 1, "row": 1}, {"column": 0}, {"row": 8}):
        with pytest.raises(ValueError, match=r"column|line"):
            seam_energy(plain, **wrong)
