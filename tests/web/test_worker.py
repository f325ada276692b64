"""The worker: images as the command line makes them, cancelling, errors, LoRA weights, memory, previews."""

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.errors import UserError, warn
from ldm.generation.signing import read_signing
from ldm.io.image_metadata import read_metadata
from ldm.io.png import read_texts
from ldm.models.generation_settings import GenerationSettings
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import encode_with_record
from ldm.provenance.credentials import read_credentials
from ldm.provenance.marks import EDITED, MADE, source_type_in
from ldm.web.caps import Caps
from ldm.web.endings import ProcessEnded
from ldm.web.image_maker import ImageMaker
from ldm.web.latent_previews import fit_colors, preview_images
from ldm.web.own_api import settings_in
from ldm.web.queue import Job
from ldm.web.served_model import ServedLora
from ldm.web.service import Asked, Service
from ldm.web.worker import Worker
from tests.support.signatures import identity, told
from tests.support.tiny_generate import files, generate, save_model, save_model_of_large_images
from tests.support.tiny_images import photo
from tests.support.tiny_loras import as_diffusers, trained
from tests.support.tiny_models import make_sd1
from tests.support.tiny_web import working

QUICK = {"num_inference_steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    return as_diffusers(trained(make_sd1(folder / "tokenizer")), folder / "film")


@pytest.fixture(scope="module")
def service(model: Path) -> Iterator[Service]:
    with working(model, caps=Caps(side_px=128)) as made:
        yield made


def ask(service: Service, prompt: str = "a", *, client: str = "me", **given: Any) -> Job:
    """Submit a request and wait for its end."""
    own = {
        name: given.pop(name)
        for name in ("image", "mask", "lora_weights", "grid_x", "grid_y")
        if name in given
    }
    job = service.submit(client, Asked(prompt, GenerationSettings(**{**QUICK, **given}), **own))
    job.ended.result(60)
    return job


def test_images_are_those_of_the_command_line(service: Service, model: Path, tmp_path: Path) -> None:
    job = ask(service, "a red apple", num_images=10, scheduler="euler")
    generate(
        "a red apple", "-n", 10, "--num-inference-steps", 2, "--seed", 3, "--scheduler", "euler",
        "--model", model, "--output", tmp_path / "made",
    )  # fmt: skip
    assert {image.file_name: image.data for image in job.images} == files(str(tmp_path / "made"))
    assert job.state == "done" and job.progress == 1 and not job.warnings


def test_images_over_a_grid_are_those_of_the_command_line(
    service: Service, model: Path, tmp_path: Path
) -> None:
    job = ask(service, "a", grid_x="guidance_scale=1,3", grid_y="seed=1,2,3")
    axes = ("--grid-x", "guidance_scale=1,3", "--grid-y", "seed=1,2,3")
    generate("a", "--num-inference-steps", 2, *axes, "--model", model, "--output", tmp_path / "made")
    made = files(str(tmp_path / "made"))
    with Image.open(tmp_path / "made/grid.png") as sheet:
        assert service.sheet(job).tobytes() == sheet.convert("RGB").tobytes()
    del made["grid.png"]
    assert {image.file_name: image.data for image in job.images} == made


def test_served_images_are_marked_watermarked_and_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("c2pa")
    model = save_model_of_large_images(tmp_path)
    identity(tmp_path / "alice", "Alice")
    monkeypatch.setenv("LDM_IDENTITY_DIR", str(tmp_path / "alice"))
    signing = read_signing(sign=True, sign_key=None, sign_certificate=None, sign_prompts=False)
    assert signing is not None
    with working(model, signer=signing.signer()) as service:
        job = ask(service, watermark=True)
        edit = ask(service, image=photo(16, 16), strength=0.5)
    quick = ("--num-inference-steps", 2, "--seed", 3, "--watermark")
    generate("a", *quick, "--sign", "--model", model, "--output", tmp_path / "made")
    (made,) = (tmp_path / "made").iterdir()
    served = tmp_path / "served.png"
    served.write_bytes(job.images[0].data)
    assert told(served)[1].partition(": ")[2] == told(made)[1].partition(": ")[2]
    assert "signed by Alice; made by large" in told(served)[1] and "as its record says" in told(served)[1]
    assert read_texts(served) == read_texts(made)
    credentials = read_credentials(edit.images[0].data)
    assert credentials is not None and [each.title for each in credentials.ingredients] == ["image"]
    for each, kind in ((job, MADE), (edit, EDITED)):
        assert source_type_in(read_metadata(each.images[0].data)) == kind
        assert source_type_in(read_metadata(service.sheet_file(each))) == kind


def test_a_grid_that_is_too_large_is_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ask(service, num_images=2)
    assert service.sheet(job).width > 32
    monkeypatch.setattr(service.queue, "caps", replace(service.caps, sheet_pixels=2 * 16 * 16 - 1))
    with pytest.raises(UserError, match="download the images one by one"):
        service.sheet(job)


def test_a_seed_is_drawn_where_none_is_given(service: Service) -> None:
    seeds = {
        service.submit("me", Asked("a", GenerationSettings(num_inference_steps=1))).requests[0].seed
        for _ in range(3)
    }
    assert len(seeds) == 3


def test_a_mistake_ends_its_job_only(service: Service) -> None:
    wrong = ask(service, strength=0.5)
    assert wrong.state == "failed" and "strength has no effect on text-to-image" in str(wrong.error)
    large = ask(service, image=photo(200, 16))
    assert "width is 200: this server makes at most 128" in str(large.error)
    grown = ask(service, image=photo(16, 16), expand="top=120")
    assert "height is 136: this server makes at most 128" in str(grown.error)
    assert ask(service).state == "done"


def test_a_fault_of_the_program_ends_its_job_only(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    unet = pipeline_of(service).denoiser.unet

    def fail(module: torch.nn.Module, args: Any) -> None:
        raise ZeroDivisionError("planted")

    hook = unet.conv_in.register_forward_pre_hook(fail)
    job = ask(service)
    hook.remove()
    assert (
        str(job.error)
        == "the server made a mistake (ZeroDivisionError): its terminal shows more; please report it"
    )
    assert "planted" in capsys.readouterr().err
    assert ask(service).state == "done"


def test_a_batch_is_made_again_if_its_process_ends_and_the_job_fails_if_it_ends_again(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = ask(service, num_images=10)
    unet, calls, fatal = pipeline_of(service).denoiser.unet, count(), {2}

    def end(module: torch.nn.Module, args: Any) -> None:
        if next(calls) in fatal:
            raise ProcessEnded("was killed by SIGSEGV")

    hook = unet.conv_in.register_forward_pre_hook(end)
    job = ask(service, num_images=10)
    assert [image.data for image in job.images] == [image.data for image in alone.images]
    said = "the process that makes the images was killed by SIGSEGV and is started again"
    assert job.state == "done" and job.warnings == [f"{said}: what it had begun is made anew"]
    assert capsys.readouterr().err == f"warning: {said}\n"
    fatal.update(range(1000))
    failed = ask(service)
    hook.remove()
    assert failed.state == "failed" and "was killed by SIGSEGV, 2 times" in str(failed.error)
    assert ask(service).state == "done"


def pipeline_of(service: Service) -> Pipeline:
    """The pipeline of the worker that takes from the service's queue."""
    (pipeline,) = pipelines_of(service)
    return pipeline


def pipelines_of(service: Service) -> list[Pipeline]:
    """The pipelines of all workers that take from the service's queue."""
    workers = [t for t in threading.enumerate() if isinstance(t, Worker) and t.queue is service.queue]
    makers = [worker.maker for worker in workers if isinstance(worker.maker, ImageMaker)]
    return [maker.models.get(0).pipeline for maker in makers]


def test_two_workers_share_the_batches_and_make_the_same_images(service: Service, model: Path) -> None:
    """Each batch waits in the network until the other worker has one, too; each job gets its own warnings."""
    alone = ask(service, num_images=10)
    together = threading.Barrier(2)

    def meet(module: torch.nn.Module, args: Any) -> None:
        together.wait(60)
        warn(f"{args[0].shape[-2]} rows")

    with working(model, caps=Caps(side_px=128), num_workers=2) as both:
        for pipeline in pipelines_of(both):
            pipeline.denoiser.unet.conv_in.register_forward_pre_hook(meet)
        shared = ask(both, num_images=10)
        plain = both.submit("me", Asked("a", GenerationSettings(**QUICK)))
        rounded = both.submit("you", Asked("a", GenerationSettings(**QUICK, height=17)))
        plain.ended.result(60)
        rounded.ended.result(60)
    assert not together.broken
    assert [image.data for image in shared.images] == [image.data for image in alone.images]
    assert plain.warnings == ["8 rows"] and rounded.warnings[1:] == ["9 rows"]


def test_a_batch_that_does_not_fit_is_halved(service: Service) -> None:
    whole = ask(service, num_images=8)

    def little_memory(module: torch.nn.Module, args: Any) -> None:
        if len(args[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = pipeline_of(service).denoiser.unet.conv_in.register_forward_pre_hook(little_memory)
    halved = ask(service, num_images=8)
    hook.remove()
    assert halved.state == "done" and len(halved.images) == 8
    assert halved.warnings[0] == "8 images at once do not fit in memory, continuing with 4"
    assert [image.record for image in halved.images] == [image.record for image in whole.images]


def test_a_running_job_stops_between_two_steps(service: Service) -> None:
    job = service.submit("me", Asked("a", GenerationSettings(num_inference_steps=250, num_images=64)))
    after = service.submit("me", Asked("b", GenerationSettings(num_inference_steps=1)))
    while not (job.oldest_turn and job.oldest_turn.previews):
        time.sleep(0.005)
    turn = job.oldest_turn
    assert job.state == "running" and 0 < job.progress < 1 and turn.num_steps >= 250
    with Image.open(io.BytesIO(turn.previews[0])) as preview:
        assert preview.size == (8, 8) and len(turn.previews) == 8
    before = time.monotonic()
    service.queue.cancel(job)
    job.ended.result(10)
    assert job.state == "cancelled" and time.monotonic() - before < 5
    after.ended.result(10)
    assert after.state == "done"


def test_lora_weights_are_chosen_for_each_request(model: Path, lora: Path, tmp_path: Path) -> None:
    with working(model, str(lora)) as service:
        assert service.model.loras == (ServedLora("film", 1.0),)
        half, without = (ask(service, lora_weights=(weight,)).images[0] for weight in (0.5, 0.0))
    named, output = ("--lora", f"{lora}:0.5"), tmp_path / "made"
    generate("a", "--num-inference-steps", 2, "--seed", 3, *named, "--model", model, "--output", output)
    assert files(str(output)) == {"0001-a-s3.png": half.data}
    assert without.record.loras == () and without.data != half.data


def test_settings_are_read_from_a_png_and_make_it_again(service: Service) -> None:
    job = ask(service, "a red apple", scheduler="euler", guidance_interval=(0.0, 0.5), num_images=2)
    png = job.images[1].data
    found = settings_in(service, png)
    assert found["note"] == "" and found["needs"] == []
    again = service.submit("me", Asked(found["prompt"], GenerationSettings(**found["settings"])))
    again.ended.result(60)
    assert again.images[0].data == png
    source = photo(16, 16)
    changed = ask(service, image=source, strength=0.5)
    found = settings_in(service, changed.images[0].data)
    for kind in ("jpeg", "webp"):
        other = encode_with_record(source, changed.images[0].record, kind)  # type: ignore[arg-type]
        assert settings_in(service, other) == found
    assert found["needs"] == ["image"] and "height" not in found["settings"]
    again = service.submit("me", Asked(found["prompt"], GenerationSettings(**found["settings"]), source))
    again.ended.result(60)
    assert again.images[0].data == changed.images[0].data


def test_the_model_is_loaded_once(service: Service) -> None:
    before = pipeline_of(service)
    ask(service)
    assert pipeline_of(service) is before and before.weights_hash == service.model.weights_hash


# Previews


def test_the_map_of_a_linear_decoder_is_found() -> None:
    matrix = torch.tensor([[0.5, 0.1, 0.0], [-0.2, 0.3, 0.1], [0.0, 0.0, 0.4], [0.1, -0.1, 0.2]])

    def decode(latents: Tensor) -> Tensor:
        colors = torch.einsum("bchw,cd->bdhw", latents, matrix) + 0.1
        return F.interpolate(colors, scale_factor=4.0, mode="nearest")

    colors = fit_colors(decode, 4, torch.device("cpu"))
    torch.testing.assert_close(colors[:4], matrix)
    torch.testing.assert_close(colors[4], torch.full((3,), 0.1))
    latents = torch.zeros(2, 4, 3, 5)
    latents[1] = float("nan")
    first, second = preview_images(latents, colors)
    assert first.size == (5, 3) and first.getpixel((0, 0)) == (140, 140, 140)
    assert second.size == (5, 3)


def test_fitting_the_map_draws_no_random_numbers_of_others(service: Service) -> None:
    autoencoder = pipeline_of(service).autoencoder
    state = torch.get_rng_state()
    fit_colors(autoencoder.decode, 4, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
