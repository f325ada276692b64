"""Churn: EDM's sampler adds noise again, from each image's own generator, and an image records how much."""

from pathlib import Path

import numpy as np
import pytest

from ldm.diffusion.edm import EDMPath, EDMSettings
from ldm.errors import UserError
from ldm.pipeline.pipeline import Pipeline
from tests.support.tiny_models import make_sd1


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    parts = make_sd1(tmp_path_factory.mktemp("churn"))
    parts.scheduler_config = EDMPath(EDMSettings(sigma_data=0.8)).scheduler_config()
    return Pipeline(parts)


def pixels(pipeline: Pipeline, prompts: list[str], **settings: object) -> list[np.ndarray]:
    made = pipeline.generate(prompts, seed=3, scheduler="heun", num_inference_steps=3, **settings)
    return [np.asarray(image, dtype=np.int16) for image in made.images]


def test_churn_changes_the_image_and_not_its_neighbours(pipeline: Pipeline) -> None:
    plain, churned = pixels(pipeline, ["a red apple"]), pixels(pipeline, ["a red apple"], churn=20.0)
    assert np.abs(plain[0] - churned[0]).max() > 3
    together = pixels(pipeline, ["a blue square", "a red apple"], churn=20.0)
    assert np.abs(together[1] - churned[0]).max() <= 1
    made = pipeline.generate(["a"], seed=3, scheduler="heun", num_inference_steps=1, churn=20.0)
    assert made.settings[0]["churn"] == 20.0
    assert "churn" not in pipeline.generate(["a"], seed=3, num_inference_steps=1).settings[0]


@pytest.mark.parametrize("scheduler", ["dpmpp_2m", "euler"])
def test_a_sampler_without_churn_says_so(pipeline: Pipeline, scheduler: str) -> None:
    with pytest.raises(UserError, match=r"churn is 20, and .* has none with this model"):
        pipeline.generate(["a"], scheduler=scheduler, churn=20.0, num_inference_steps=1)


def test_samplers_of_other_paths_have_no_churn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use scheduler heun with a model of path edm"):
        Pipeline(make_sd1(tmp_path)).generate(["a"], scheduler="heun", churn=1.0, num_inference_steps=1)
