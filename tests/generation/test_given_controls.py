"""Control images of `ldm generate`: files and folders, prompt files, reproducing, and what is refused in one line."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.errors import UserError
from ldm.generation.given_images import parse_control, with_images
from ldm.generation.prompts import parse_prompt
from ldm.models.control.load_networks import load_controls
from ldm.models.control.networks import ControlNetwork
from ldm.models.loading.model import save_parts
from ldm.pipeline import control_images
from ldm.pipeline.batches import Prompt
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import read_record
from tests.support.tiny_controls import hints, make_controlnet, save_controlnet
from tests.support.tiny_images import photo
from tests.support.tiny_models import make_sd1, make_sd2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a ControlNet for it, and folders of images and of maps with the same names."""
    folder = tmp_path_factory.mktemp("controls")
    parts = make_sd1(folder / "tokenizer")
    save_parts(parts, folder / "model")
    save_controlnet(make_controlnet(parts), folder / "net")
    for name, seed in (("images", 0), ("maps", 5)):
        (folder / name).mkdir()
        for number in range(2):
            photo(seed=seed + number).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    parts = make_sd1(folder / "tokenizer")
    net = make_controlnet(parts)
    parts.controls = {kind: ControlNetwork(kind, "net", "0" * 64, net) for kind in ("canny", "depth")}
    return Pipeline(parts)


def test_a_control_image_is_recorded_and_asked_for_again(folder: Path) -> None:
    made, again = folder / "made", folder / "again"

    def generate(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["generate", *arguments, "--model", str(folder / "model"), "--quiet"])

    control, net = f"depth={folder}/maps/0.png", f"depth={folder}/net"
    first = generate(
        "a red apple", "--control", f"{control}:0.5", "--controlnet", net, "--output", str(made), "--control-interval",
        "0", "0.75", "-n", "1", "--num-inference-steps", "2",
    )  # fmt: skip
    assert first.exit_code == 0, first.output
    (path,) = made.iterdir()
    record = read_record(path)
    (used,) = record.controls
    assert (used.kind, used.scale, used.name, used.width) == ("depth", 0.5, "net", 16)
    assert record.record_version == 3 and record.settings.control_interval == (0.0, 0.75)
    flat = record.to_json()
    assert flat["guess_mode"] is False and "strength" not in flat
    common = ("--reproduce", str(path), "--output", str(again))
    for arguments, said in (
        (("--controlnet", net), "was made with --control depth, 16 x 16 pixels"),
        (
            ("--controlnet", net, "--control", f"depth={folder}/maps/1.png"),
            "is not the control image of kind depth",
        ),
    ):
        refused = generate(*common, *arguments)
        assert refused.exit_code == 2 and said in " ".join(refused.output.split())
    assert not again.exists()
    assert generate(*common, "--control", control, "--controlnet", net).exit_code == 0
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(again / path.name)))
    resumed = generate(
        "a red apple", "--control", f"{control}:0.6", "--controlnet", net, "--output", str(made), "--control-interval",
        "0", "0.75", "--num-inference-steps", "2", "--resume",
    )  # fmt: skip
    assert resumed.exit_code == 2 and "was made with controls" in " ".join(resumed.output.split())


def test_folders_are_paired_by_name(folder: Path) -> None:
    maps, images = folder / "maps", folder / "images"
    prompt = [Prompt("a")]
    alone = with_images(prompt, None, None, [f"depth={maps}:0.5", f"pose={images}/0.png"])
    assert [[Path(c.image.name).parent.name + Path(c.image.name).stem for c in p.controls] for p in alone] == [
        ["maps0", "images0"], ["maps1", "images0"],
    ]  # fmt: skip
    both = with_images(prompt, images, None, [f"depth={maps}"])
    assert [(Path(p.inputs["image"].name).stem, Path(p.controls[0].image.name).stem) for p in both] == [
        ("0", "0"), ("1", "1"),
    ]  # fmt: skip
    (folder / "lone").mkdir()
    photo().save(folder / "lone/7.png")
    with pytest.raises(UserError, match=r"maps has no depth image for 7\.png: put one there as 7\.png"):
        with_images(prompt, folder / "lone", None, [f"depth={maps}"])


def test_prompt_files_name_control_images(folder: Path) -> None:
    prompt = parse_prompt(
        {"prompt": "a", "control": ["depth=maps/0.png:0.25", "pose=maps/1.png"]}, folder=folder
    )
    assert [(each.kind, each.weight) for each in prompt.controls] == [("depth", 0.25), ("pose", 1.0)]
    assert parse_control("depth=a.png:0.5", folder).place == folder / "a.png"
    with pytest.raises(UserError, match=r'control is 3: it must be such as "canny=edges\.png:0\.8"'):
        parse_prompt({"prompt": "a", "control": 3})


def test_the_size_follows_the_control_image(pipeline: Pipeline) -> None:
    made = pipeline.generate("a", control={"depth": photo(21, 13)}, num_inference_steps=1)
    assert made.images[0].size == (21, 13)


def test_settings_without_a_control_image_are_refused_and_not_recorded(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match="guess_mode has no effect without --control: add --control"):
        pipeline.generate("a", guess_mode=True)
    plain = pipeline.generate("a", num_inference_steps=1).records[0]
    assert plain.record_version == 2
    assert not {"controls", "guess_mode", "control_interval", "canny_thresholds"} & plain.to_json().keys()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another aspect": (
        {"control": {"depth": photo(32, 16)}, "height": 16, "width": 16},
        "control depth has 32 x 16 pixels, another shape than the image of 16 x 16: crop it",
    ),
    "an unknown kind": (
        {"control": {"cany": photo()}},
        "unknown kind of control image 'cany': did you mean 'canny'",
    ),
    "no network": (
        {"control": {"pose": photo()}},
        "there is no network for control images of kind pose: name .*--controlnet pose=FOLDER",
    ),
    "a negative scale": (
        {"control": {"depth": (photo(), -1.0)}},
        "scale of control depth is -1.0: it must be",
    ),
    "NaN": ({"control": {"depth": (photo(), float("nan"))}}, "scale of control depth is nan"),
    "no mapping": ({"control": photo()}, "control is a Image: give images by kind"),
    "a file that is missing": ({"control": {"depth": "missing.png"}}, "missing.png: No such file"),
    "too few": ({"control": {"depth": [photo()] * 3}}, "3 control images of kind depth for 2 prompts"),
    "an interval backwards": (
        {"control": {"depth": photo()}, "control_interval": (0.5, 0.2)},
        "control_interval is 0.5 0.2: give increasing fractions",
    ),
    "thresholds": (
        {"control": {"canny": photo()}, "canny_thresholds": (200, 100)},
        "canny_thresholds is 200 100",
    ),
    "deep features": (
        {"control": {"depth": photo()}, "deep_features_every": 2, "num_inference_steps": 2},
        "deep features cannot be reused with control signals",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_control_is_refused_in_one_line(pipeline: Pipeline, name: str) -> None:
    given, message = WRONG[name]
    with pytest.raises(UserError, match=message) as caught:
        pipeline.generate(["a", "b"], **given)
    assert "\n" not in str(caught.value)


def test_networks_of_other_models_are_refused(folder: Path) -> None:
    other = make_sd2(folder / "sd2-tokenizer")
    with pytest.raises(
        UserError, match=r"net does not fit this model: it has cross_attention_dim 32, the unet 48"
    ):
        load_controls({"depth": folder / "net"}, other)
    parts = make_sd1(folder / "tokenizer")
    with pytest.raises(UserError, match=r"model has no config\.json: give a ControlNet or T2I-Adapter"):
        load_controls({"depth": folder / "model"}, parts)
    with pytest.raises(UserError, match="is of the class 'UNet2DConditionModel': supported: ControlNetModel"):
        load_controls({"depth": folder / "model/unet"}, parts)
    (folder / "bare").mkdir()
    (folder / "bare/config.json").write_text(json.dumps({"_class_name": "ControlNetModel"}))
    with pytest.raises(UserError, match=r"bare has no diffusion_pytorch_model\.safetensors"):
        load_controls({"depth": folder / "bare"}, parts)


@pytest.mark.parametrize("text", ["canny", "canny=", "=a.png"])
def test_what_is_no_kind_and_file_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"write canny=FILE:0\.8|unknown kind"):
        parse_control(text)


def test_edges_are_found_at_the_size_of_the_image_or_taken_as_they_are(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2 = pytest.importorskip("cv2")
    image = Image.new("RGB", (64, 64), "navy")
    image.paste("yellow", (16, 16, 48, 48))
    drawn = control_images.read_control("canny", image).hint(64, 64, 2, (100, 200))
    assert np.array_equal(drawn[0].numpy() * 255, cv2.Canny(np.asarray(image), 100, 200))
    assert set(drawn.unique().tolist()) == {0.0, 1.0} and 0.02 < drawn.mean() < 0.1
    edges = Image.fromarray((drawn[0].numpy() * 255).astype(np.uint8))
    assert control_images.read_control("canny", edges).hint(64, 64, 2, (100, 200)).equal(drawn)


def test_without_opencv_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"needs OpenCV: pip install 'open-ldm\[control\]', or give a map"):
        control_images.read_control("canny", hints()[0]).hint(16, 16, 2, (100, 200))


def test_label_maps_keep_their_colours_and_other_maps_are_averaged() -> None:
    colours = Image.fromarray(np.kron(np.array([[0, 200]] * 2, np.uint8), np.ones((3, 3), np.uint8)), "L")
    labels = control_images.read_control("segmentation", colours).hint(4, 4, 2, (1, 2))
    assert set((labels * 255).round().unique().tolist()) == {0.0, 200.0}
    checks = Image.fromarray(np.indices((8, 8)).sum(axis=0).astype(np.uint8) % 2 * 255)
    mean = control_images.read_control("scribble", checks).hint(4, 4, 2, (1, 2))
    assert mean.min() == mean.max() and abs(float(mean.mean()) - 0.5) < 0.01
