"""The process with the models: images as in this process, errors, cancelling; and real kills in the middle of a job."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm.errors import UserError
from ldm.generation.model_options import ModelOptions
from ldm.models.generation_settings import GenerationSettings
from ldm.web.caps import Caps
from ldm.web.image_maker import MakerSetup
from ldm.web.model_process import ModelProcess
from ldm.web.queue import Job
from ldm.web.service import Asked, Service
from tests.support.tiny_generate import files, generate, save_model
from tests.support.tiny_images import photo
from tests.support.tiny_loras import as_diffusers, trained
from tests.support.tiny_models import make_sd1
from tests.support.tiny_web import working_in_a_process

Served = tuple[Service, ModelProcess]
LONG = GenerationSettings(num_inference_steps=100, num_images=10, seed=3)


def test_a_process_that_ends_before_it_has_loaded_is_an_error(tmp_path: Path) -> None:
    process = ModelProcess()
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(UserError) as caught:
        process.load(MakerSetup((ModelOptions(str(tmp_path)),), 2, Caps()))
    process.close()
    said = "the process that loads the models was killed by SIGKILL: if memory ran out, use --low-memory or a smaller"
    assert str(caught.value).startswith(said)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    return as_diffusers(trained(make_sd1(folder / "tokenizer")), folder / "film")


@pytest.fixture(scope="module")
def served(model: Path, lora: Path) -> Iterator[Served]:
    with working_in_a_process(model, str(lora)) as made:
        yield made


def finished(job: Job) -> Job:
    job.ended.result(120)
    return job


def kill_while_at_work(process: ModelProcess, job: Job, made: int = 0) -> None:
    """Kill the process in the middle of a batch, when so many images are made."""
    while not (job.num_made == made and job.oldest_turn and 5 < job.oldest_turn.step < 95):
        assert not job.is_finished
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_makes_the_same_images(
    served: Served, model: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service, process = served
    job = service.submit("me", Asked("a", LONG))
    kill_while_at_work(process, job, made=8)
    assert finished(job).state == "done"
    said = "the process that makes the images was killed by SIGKILL and is started again"
    assert job.warnings == [f"{said}: what it had begun is made anew"] and said in capsys.readouterr().err
    asked = ("a", "-n", 10, "--num-inference-steps", 100, "--seed", 3)
    generate(*asked, "--model", model, "--lora", lora, "--output", tmp_path)
    assert {image.file_name: image.data for image in job.images} == files(str(tmp_path))


@pytest.mark.slow
def test_a_job_that_kills_its_process_twice_fails_and_the_next_one_is_made(served: Served) -> None:
    service, process = served
    job = service.submit("me", Asked("a", LONG))
    for _ in range(2):
        kill_while_at_work(process, job)
        while job.at_work and job.oldest_turn and job.oldest_turn.step:
            time.sleep(0.001)
    assert finished(job).state == "failed" and str(job.error).startswith(
        "the process that made the images was killed by SIGKILL, 2 times: ask for"
    )
    assert finished(service.submit("me", Asked("a", GenerationSettings(num_inference_steps=1)))).images


@pytest.mark.slow
def test_a_process_that_ends_while_it_waits_costs_no_job_anything(served: Served) -> None:
    service, process = served
    os.kill(process.pid, signal.SIGKILL)
    while process.is_alive:
        time.sleep(0.001)
    job = finished(service.submit("me", Asked("a", GenerationSettings(num_inference_steps=1))))
    assert job.state == "done" and job.warnings == [] and job.num_ends == 0


@pytest.mark.slow
def test_cancelling_errors_warnings_weights_and_images_given(
    served: Served, model: Path, tmp_path: Path
) -> None:
    service, process = served
    job = service.submit("me", Asked("a", LONG))
    while not (job.oldest_turn and job.oldest_turn.previews):
        time.sleep(0.001)
    pid = process.pid
    service.queue.cancel(job)
    assert finished(job).state == "cancelled" and not job.images
    quick = GenerationSettings(num_inference_steps=2, seed=3)
    wrong = finished(service.submit("me", Asked("a", quick.over(GenerationSettings(strength=0.5)))))
    assert "strength has no effect on text-to-image" in str(wrong.error)
    rounded = finished(service.submit("me", Asked("a", GenerationSettings(num_inference_steps=1, height=17))))
    assert rounded.state == "done" and "height 17 is rounded to 18" in rounded.warnings[0]
    source = photo(16, 16)
    given = Asked("a", quick, source, lora_weights=(0.0,), file_format="webp")
    (image,) = finished(service.submit("me", given)).images
    assert image.record.loras == () and image.file_name.endswith(".webp") and process.pid == pid
    source.save(tmp_path / "source.png")
    asked = ("a", "--num-inference-steps", 2, "--seed", 3, "--format", "webp", "--model", model)
    generate(*asked, "--image", tmp_path / "source.png", "--output", tmp_path / "made")
    assert list(files(str(tmp_path / "made")).values()) == [image.data]
