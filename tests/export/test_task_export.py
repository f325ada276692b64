"""Models for inpainting and editing: exported, read back by their stock pipelines, and refused where one differs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import ldm.export.verify.compare
from ldm.cli.app import app
from ldm.errors import UserError
from ldm.export.artefact import export
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import load_source
from ldm.export.formats.single_file import modelspec_metadata, write_single_file
from ldm.export.verify import readers
from ldm.export.verify.check import check
from ldm.export.verify.trial import differences, trial_for, trial_inputs, trial_outputs
from ldm.io.json_files import read_json
from ldm.models.adapters.folder import Adapter, find_base, save_adapter
from ldm.models.adapters.lora import LoraSettings
from ldm.models.loading.model import load_parts, save_parts
from ldm.tasks import TASKS as KNOWN
from ldm.tasks import register_task
from ldm.tasks.edit import Edit
from tests.support.slow_cases import rest_slow
from tests.support.tiny_images import box_mask, photo
from tests.support.tiny_loras import trained
from tests.support.tiny_models import SD1_SCHEDULER
from tests.support.tiny_single_file import make_narrow_sd1
from tests.support.tiny_task_models import TASKS, for_task, make_task_model

QUIET = ExportOptions(num_samples=0)


@pytest.fixture(autouse=True)
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader runs in this process, which has diffusers loaded already."""
    monkeypatch.setattr(ldm.export.verify.compare, "_run", lambda task, _: readers.main([str(task)]))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny models by task."""
    root = tmp_path_factory.mktemp("models")
    for task in TASKS:
        save_parts(make_task_model(root / f"tokenizer-{task}", task), root / task)
    return {task: root / task for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("dtype", "variant"), [("float32", False), ("float16", True)])
def test_the_stock_pipeline_draws_the_same_image(
    models: dict[str, Path], tmp_path: Path, task: str, dtype: str, variant: bool
) -> None:
    options = replace(QUIET, dtype=dtype, variant=variant)
    (verdict,) = export(load_source(models[task]), tmp_path / "out", options).verdicts
    assert verdict.largest_difference < 0.01
    index = read_json(tmp_path / "out/model_index.json")
    assert index["_class_name"] == load_parts(models[task]).family.task_pipelines[task]


@pytest.mark.parametrize("task", TASKS)
def test_one_changed_weight_fails_the_export(
    models: dict[str, Path], tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight of the channels that only these tasks have."""

    def broken(task: dict[str, str]) -> object:
        pipe = readers.read_folder(task)
        with torch.no_grad():
            pipe.unet.conv_in.weight[0, 7, 1, 1] += 3
        return pipe

    monkeypatch.setitem(readers.READERS, "diffusers", ("diffusers", broken))
    with pytest.raises(UserError, match="diffusers reads the denoiser, the text encoder or the scheduler"):
        export(load_source(models[task]), tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists() and (tmp_path / "out.failed").is_dir()


@pytest.mark.parametrize("task", TASKS)
def test_the_trial_depends_on_the_images_given(models: dict[str, Path], task: str) -> None:
    parts = load_parts(models[task])
    trial = trial_for(parts)
    before = trial_outputs(parts, trial)
    with torch.no_grad():  # the last channel of the masked image or of the source, and the mask
        parts.denoiser.unet.conv_in.weight[:, -1] *= 5
    assert differences(before, trial_outputs(parts, trial))["pixels"] > 1
    if task == "inpaint":
        parts = load_parts(models[task])
        with torch.no_grad():
            parts.denoiser.unet.conv_in.weight[:, 4] *= 1.5
        assert differences(before, trial_outputs(parts, trial))["pixels"] > 1
        mask = trial_inputs(parts, trial)["given_mask"]
        assert 0 < mask.mean() < 1 and set(mask.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("task", TASKS)
def test_a_single_file_keeps_the_task(tmp_path: Path, task: str) -> None:
    parts, file = for_task(make_narrow_sd1(), task), tmp_path / "m.safetensors"
    metadata = modelspec_metadata(parts, title="m")
    kind = {"inpaint": "stable-diffusion-v1-inpainting", "edit": "stable-diffusion-v1"}[task]
    assert metadata["modelspec.architecture"] == kind
    write_single_file(parts, file, dtype=torch.float32, metadata=metadata)
    loaded = load_parts(file)
    assert loaded.task == task and loaded.denoiser.input_channels == TASKS[task]
    assert torch.equal(loaded.denoiser.unet.conv_in.weight, parts.denoiser.unet.conv_in.weight)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_diffusers_reads_a_single_file_of_the_task(tmp_path: Path, task: str) -> None:
    save_parts(for_task(make_narrow_sd1(), task), tmp_path / "model")
    source = load_source(tmp_path / "model")
    (verdict,) = export(source, tmp_path / "out", replace(QUIET, format="single-file")).verdicts
    assert verdict.largest_difference < 0.1
    pipeline = source.parts.family.task_pipelines[task]
    assert f"pipe = {pipeline}.from_single_file(" in (tmp_path / "out/README.md").read_text()
    assert check(tmp_path / "out").passed


@pytest.mark.slow
@pytest.mark.parametrize(("task", "format"), [("inpaint", "lora-kohya"), ("edit", "lora-peft")])
def test_a_lora_on_such_a_base(models: dict[str, Path], tmp_path: Path, task: str, format: str) -> None:
    parts, plain = load_parts(models[task]), load_parts(models[task])
    known = Adapter(
        "lora", str(models[task]), find_base(models[task]).weights_hash, plain.scheduler_config, {}
    )
    save_adapter(tmp_path / "film", known, trained(parts, LoraSettings(rank=2, alpha=5)), plain.defaults)
    source = load_source(tmp_path / "film")
    assert source.parts.task == task
    (verdict,) = export(source, tmp_path / "out", replace(QUIET, format=format)).verdicts
    assert verdict.passed and verdict.lora_effect is not None and verdict.lora_effect > 1


def test_what_cannot_be_read_elsewhere_is_refused_in_one_line(
    models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^no program runs a model for edit with OpenVINO: choose --format"):
        export(load_source(models["edit"]), tmp_path / "out", replace(QUIET, format="openvino"))
    register_task(Edit(name="sharpen", trained_as="sharpen"))
    try:
        parts = load_parts(models["edit"])
        parts.task = "sharpen"
        with pytest.raises(UserError, match=r"^diffusers has no pipeline for a model trained for sharpen"):
            trial_for(parts)
    finally:
        del KNOWN["sharpen"]
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_without_the_settings_that_these_pipelines_do_not_correct(tmp_path: Path) -> None:
    """StableDiffusionPipeline sets `steps_offset` and `clip_sample`, and the one for editing does not."""
    bare = {key: value for key, value in SD1_SCHEDULER.items() if key not in ("steps_offset", "clip_sample")}
    parts = make_task_model(tmp_path / "tokenizer", "edit")
    parts.scheduler_config = {**bare, "_class_name": "DDIMScheduler"}
    save_parts(parts, tmp_path / "model")
    (verdict,) = export(load_source(tmp_path / "model"), tmp_path / "out", QUIET).verdicts
    assert verdict.largest_difference < 0.01


def command(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("task", rest_slow(TASKS, "inpaint"))
def test_the_card_shows_how_it_is_used_and_the_commands_take_the_export(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    export(load_source(models[task]), tmp_path / "out", ExportOptions(num_samples=2, licence="mit"))
    card = (tmp_path / "out/README.md").read_text()
    assert "pipeline_tag: image-to-image" in card and "makes images from text" not in card
    prompt = {"inpaint": "a red apple", "edit": "make it blue"}[task]
    mask = " --mask mask.png" if task == "inpaint" else ""
    assert f"ldm generate '{prompt}' --model out --image photo.png{mask}\n" in card
    assert "The image given was made by the model that comes with OpenLDM." in card
    with (
        Image.open(tmp_path / "out/samples/grid.png") as grid,
        Image.open(tmp_path / "out/samples/01.png") as one,
    ):
        assert grid.width > 4 * 16 and one.size == (16, 16)
    monkeypatch.chdir(tmp_path)
    photo(40, 24).save("photo.png")
    box_mask((40, 24), (0, 0, 19, 23)).save("mask.png")
    exec(card.partition("```python\n")[2].partition("```")[0], {})
    with Image.open("image.png") as image, Image.open("photo.png") as given:
        assert image.size == (16, 16)
        if task == "inpaint":
            right = (9, 0, 16, 16)
            assert image.crop(right).tobytes() == given.resize((16, 16)).crop(right).tobytes()

    assert "read by diffusers" in command("verify", tmp_path / "out")
    assert "task:" in (told := command("info", tmp_path / "out")) and f" {task}\n" in told
    assert "nothing was sent" in command("push", tmp_path / "out", "ann/model", "--dry-run")
