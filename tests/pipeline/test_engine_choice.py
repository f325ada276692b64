"""The choice of the engine; OpenVINO need not be installed."""

import os
import time
from pathlib import Path

import pytest

from ldm.pipeline import engine_choice
from ldm.pipeline.engine_choice import Work, choose_engine, converted_folder, repays
from tests.support.tiny_models import make_sd1


def test_what_pays() -> None:
    stable_diffusion = 860_000_000
    assert not repays(num_rows=8, row_sec=2.0, num_weights=stable_diffusion)
    assert repays(num_rows=50, row_sec=2.0, num_weights=stable_diffusion)
    assert not repays(num_rows=50, row_sec=0.01, num_weights=17_000_000)
    assert repays(num_rows=5000, row_sec=0.01, num_weights=17_000_000)


@pytest.mark.parametrize(("num_weights", "least_sec"), [(0, 20.0), (250_000_000, 40.0)])
def test_a_quarter_of_torchs_time_is_saved(num_weights: int, least_sec: float) -> None:
    """Converting costs 5 s and 20 ns for every weight, which a quarter of four times that repays."""
    rows = round(least_sec / 0.5)
    assert not repays(num_rows=rows, row_sec=0.5, num_weights=num_weights)
    assert repays(num_rows=rows + 1, row_sec=0.5, num_weights=num_weights)


def test_a_network_taken_from_the_cache_counts_as_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / "cache"))
    denoiser = make_sd1(tmp_path).denoiser
    folder = converted_folder(denoiser)
    folder.mkdir(parents=True)
    os.utime(folder, (0, 0))
    monkeypatch.setattr(engine_choice, "openvino_denoiser", lambda denoiser, folder, in_passes: "converted")
    assert (
        choose_engine("openvino", denoiser, Work(num_rows=1, height=8, width=8, num_tokens=16)) == "converted"
    )
    assert folder.stat().st_mtime > time.time() - 60
