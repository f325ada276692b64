"""A model in one file in the original layout: written, read by us and by diffusers, and used for generation."""

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.errors import LdmWarning, UserError
from ldm.export.formats.single_file import modelspec_metadata, write_single_file
from ldm.io.files import sha256_file
from ldm.models.loading.model import load_parts
from ldm.models.loading.original_file import load_single_file
from ldm.models.parts import ModelParts
from ldm.pipeline.pipeline import Pipeline, load_pipeline
from ldm.pipeline.record import read_settings
from tests.support.tiny_models import SD1_SCHEDULER, SD2_SCHEDULER, ZERO_SNR_SCHEDULER
from tests.support.tiny_single_file import SIZE_PX, make_narrow_sd1, make_narrow_sd2

UNET, VAE = "model.diffusion_model.", "first_stage_model."

pytestmark = pytest.mark.filterwarnings("ignore:.* does not say what it predicts. as usual")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("single-files")


@pytest.fixture(scope="module")
def sd1(folder: Path) -> tuple[ModelParts, Path]:
    return written(make_narrow_sd1(), folder / "one.safetensors")


@pytest.fixture(scope="module")
def sd2(folder: Path) -> tuple[ModelParts, Path]:
    return written(make_narrow_sd2(), folder / "two.safetensors")


def written(parts: ModelParts, path: Path, **metadata: Any) -> tuple[ModelParts, Path]:
    said = modelspec_metadata(parts, title="Narrow", licence="mit", **metadata)
    write_single_file(parts, path, dtype=torch.float32, metadata=said)
    return parts, path


def weights_of(parts: ModelParts) -> Iterator[tuple[str, Tensor]]:
    networks = {"unet": parts.denoiser.unet, "vae": parts.autoencoder.vae, "text": parts.text_encoder.model}
    for part, network in networks.items():
        for name, tensor in network.state_dict().items():
            yield f"{part}.{name}", tensor


def assert_same_weights(ours: ModelParts, theirs: ModelParts) -> None:
    first, second = dict(weights_of(ours)), dict(weights_of(theirs))
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def rewritten(
    path: Path, dest: Path, metadata: dict[str, str] | None = None, **changes: Tensor | None
) -> Path:
    """A copy of a file with another header and with some tensors added, or removed where None."""
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, dest, metadata)
    return dest


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_model_is_read_back_completely(kind: str, request: pytest.FixtureRequest) -> None:
    parts, path = request.getfixturevalue(kind)
    back = load_parts(path)
    assert_same_weights(parts, back)
    for key in ("prediction_type", "beta_start", "beta_end", "beta_schedule", "num_train_timesteps"):
        assert back.scheduler_config[key] == parts.scheduler_config.get(key, "epsilon")
    assert back.denoiser.unet.config.attention_head_dim == parts.denoiser.unet.config.attention_head_dim
    assert (back.defaults.height, back.defaults.width, back.defaults.max_prompt_chunks) == (
        SIZE_PX,
        SIZE_PX,
        3,
    )
    pad = back.text_encoder.tokenizer.pad_token_id
    assert pad == parts.text_encoder.tokenizer.pad_token_id == {"sd1": 49407, "sd2": 0}[kind]
    assert not any(
        p.requires_grad or p.is_meta for module in back.modules().values() for p in module.parameters()
    )


def test_the_names_are_those_of_the_original_programs(sd1: tuple[Any, Path], sd2: tuple[Any, Path]) -> None:
    one, two = load_file(sd1[1]), load_file(sd2[1])
    assert one[f"{UNET}output_blocks.11.0.skip_connection.weight"].shape == (32, 64, 1, 1)
    assert one[f"{UNET}output_blocks.2.1.conv.weight"].shape == (64, 64, 3, 3)
    assert one[f"{VAE}decoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    assert one["cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"].shape == (
        77,
        64,
    )
    assert "v_pred" not in one
    assert two[f"{UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"].shape == (64, 128)
    assert two["cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"].shape == (384, 128)
    assert two["cond_stage_model.model.token_embedding.weight"].shape == (49408, 128)
    assert two["v_pred"].shape == (0,)


def test_the_header_says_what_the_file_is(sd2: tuple[ModelParts, Path]) -> None:
    said, path = header(sd2[1]), sd2[1]
    assert said["modelspec.sai_model_spec"] == "1.0.1"
    assert said["modelspec.architecture"] == "stable-diffusion-v2-768-v"
    assert (said["modelspec.title"], said["modelspec.license"]) == ("Narrow", "mit")
    assert (said["modelspec.resolution"], said["modelspec.prediction_type"]) == ("64x64", "v")
    raw = path.read_bytes()
    tensors = raw[8 + int.from_bytes(raw[:8], "little") :]
    assert said["modelspec.hash_sha256"] == f"0x{hashlib.sha256(tensors).hexdigest()}"


def test_the_thumbnail_is_a_small_image_without_metadata(sd1: tuple[ModelParts, Path]) -> None:
    picture = Image.new("RGB", (512, 256), "red")
    exif = picture.getexif()
    exif[0x010E] = "secret"
    picture.info["exif"] = exif.tobytes()
    said = modelspec_metadata(sd1[0], title="a", thumbnail=picture)
    kind, _, data = said["modelspec.thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert (small.size, dict(small.getexif())) == ((256, 128), {})
    assert "modelspec.license" not in said


def test_zero_terminal_snr_is_kept(folder: Path) -> None:
    _, path = written(make_narrow_sd1(ZERO_SNR_SCHEDULER), folder / "zero.safetensors")
    config = load_single_file(path).scheduler_config
    wanted = ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing")
    assert [config[key] for key in wanted] == [ZERO_SNR_SCHEDULER[key] for key in wanted]


def test_settings_without_weights_come_from_a_key_the_header_or_stable_diffusion(
    sd1: tuple[Any, Path], sd2: tuple[Any, Path], tmp_path: Path
) -> None:
    dest = tmp_path / "m.safetensors"

    def read(**options: Any) -> tuple[str, int]:
        parts = load_single_file(dest, **options)
        return parts.scheduler_config["prediction_type"], parts.defaults.height

    rewritten(sd1[1], dest)
    assert read() == ("epsilon", 512)
    assert read(prediction_type="v") == ("v_prediction", 512)
    rewritten(sd1[1], dest, {"modelspec.prediction_type": "v", "modelspec.resolution": "640x640"})
    assert read() == ("v_prediction", 640)
    rewritten(sd2[1], dest)
    assert read() == ("v_prediction", 768)
    rewritten(sd2[1], dest, {"modelspec.prediction_type": "epsilon"}, v_pred=None)
    assert read() == ("epsilon", 512)


@pytest.mark.parametrize(("deviation", "guess"), [(0.01, "epsilon"), (0.2, "v_prediction")])
def test_the_prediction_type_of_stable_diffusion_2_is_guessed_from_its_weights(
    deviation: float, guess: str, sd2: tuple[Any, Path], tmp_path: Path
) -> None:
    telling = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    bias = deviation * torch.randn(64, generator=torch.Generator().manual_seed(1))
    path = rewritten(sd2[1], tmp_path / "m.safetensors", **{"v_pred": None, telling: bias})
    with pytest.warns(LdmWarning, match=rf"m\.safetensors does not say .* taken for {guess}"):
        assert load_single_file(path).scheduler_config["prediction_type"] == guess


def test_other_contents_of_such_files_are_ignored(sd2: tuple[ModelParts, Path], tmp_path: Path) -> None:
    open_clip, last = "cond_stage_model.model.", "cond_stage_model.model.transformer.resblocks.23."
    tensors = load_file(sd2[1])
    first = f"{open_clip}transformer.resblocks.0."
    last_layer = {n.replace(first, last): t.clone() for n, t in tensors.items() if n.startswith(first)}
    more = {
        "betas": torch.ones(1000),
        "alphas_cumprod": torch.ones(1000),
        "model_ema.decay": torch.tensor(0.5),
        "model_ema.diffusion_modelout2weight": torch.ones(3),
        f"{open_clip}text_projection": torch.ones(128, 128),
        f"{open_clip}logit_scale": torch.tensor(4.6),
        f"{VAE}loss.logvar": torch.tensor(0.0),
        "scale_factor": torch.tensor(0.25),
    }
    back = load_single_file(
        rewritten(sd2[1], tmp_path / "m.safetensors", header(sd2[1]), **more, **last_layer)
    )
    assert_same_weights(sd2[0], back)
    assert back.autoencoder.scaling_factor == 0.25


def test_stored_in_float16_it_is_the_model_rounded(sd1: tuple[ModelParts, Path], tmp_path: Path) -> None:
    write_single_file(sd1[0], tmp_path / "half.safetensors", dtype=torch.float16, metadata={})
    back = dict(weights_of(load_single_file(tmp_path / "half.safetensors", torch.float16)))
    assert all(t.dtype == (torch.float32 if n.startswith("vae.") else torch.float16) for n, t in back.items())
    rounded = {name: tensor.half().to(back[name].dtype) for name, tensor in weights_of(sd1[0])}
    assert not [name for name in rounded if not torch.equal(rounded[name], back[name])]


def generate(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_images_from_a_file_say_so_and_can_be_reproduced(
    sd2: tuple[ModelParts, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = generate("a red apple!", "--model", sd2[1], "--num-inference-steps", 2, "--seed", 5)
    assert (result.exit_code, result.stderr) == (0, "")
    path = Path(result.stdout.strip())
    settings = read_settings(path)
    assert settings["model_id"] == "two.safetensors"
    assert settings["weights_hash"] == sha256_file(sd2[1]) == load_pipeline(sd2[1]).weights_hash
    assert str(sd2[1].parent) not in json.dumps(settings)
    meant = Pipeline(sd2[0]).generate("a red apple!", seed=5, num_inference_steps=2, scheduler="dpmpp_2m")
    with Image.open(path) as image:
        assert np.abs(np.asarray(image).astype(int) - np.asarray(meant.images[0])).max() <= 1
    result = generate("--reproduce", path, "--output", "again")
    assert result.exit_code == 2
    assert "with a model in a file called 'two.safetensors': say where it is with --model" in result.stderr
    result = generate("--reproduce", path, "--output", "again", "--model", sd2[1])
    assert Path(result.stdout.strip()).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_diffusers_generates_the_same_image_from_the_file(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """`from_single_file`, with a folder for sizes and vocabulary: the Hub has no model of this width."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    parts, path = request.getfixturevalue(kind)
    ours = Pipeline(parts)
    ours.save(tmp_path / "folder")
    for weights in (tmp_path / "folder").rglob("*.safetensors"):
        weights.unlink()
    theirs = StableDiffusionPipeline.from_single_file(
        str(path), config=str(tmp_path / "folder"), local_files_only=True, safety_checker=None
    )
    scheduler = {**(SD1_SCHEDULER if kind == "sd1" else SD2_SCHEDULER), "_class_name": "DDIMScheduler"}
    theirs.scheduler = DDIMScheduler.from_config(scheduler)
    theirs.set_progress_bar_config(disable=True)
    made = theirs(
        "a red apple!",
        num_inference_steps=2,
        height=SIZE_PX,
        width=SIZE_PX,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]
    meant = ours.generate("a red apple!", seed=3, num_inference_steps=2, scheduler="ddim").images[0]
    assert np.abs(np.asarray(made).astype(int) - np.asarray(meant)).max() <= 1
    assert np.asarray(meant).std() > 5  # not a uniform image


def test_a_file_that_cannot_be_written_is_an_error_of_one_line(
    sd1: tuple[ModelParts, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"m\.safetensors cannot be written"):
        write_single_file(sd1[0], tmp_path / "file" / "m.safetensors", dtype=torch.float32, metadata={})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
