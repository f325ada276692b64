"""An exported OpenVINO folder: its networks compute what ours do, and a stock pipeline draws our image with them."""

from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import pytest

from ldm import UserError
from ldm.export.formats.openvino import traced_networks, write_openvino
from ldm.export.verify import readers
from ldm.export.verify.openvino_reader import read_openvino
from ldm.export.verify.trial import largest_difference, trial_for, trial_inputs, trial_outputs
from ldm.io.files import write_tensors
from ldm.io.json_files import read_json
from ldm.models.engines.openvino_network import read_network
from ldm.models.families.stable_diffusion_xl import SDXL
from ldm.models.loading.model import ModelParts, load_parts
from ldm.models.loading.source import EMBEDDED
from tests.support.tiny_models import make_sd1, make_sd2, make_sdxl
from tests.support.tiny_task_models import make_task_model

pytestmark = [
    pytest.mark.openvino,
    pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed"),
]

NETWORKS = {"unet", "vae_encoder", "vae_decoder", "text_encoder"}


def differences_from(parts: ModelParts, folder: Path) -> dict[str, float]:
    """The largest difference of each network from torch's, in standard deviations of its output.

    Compared at sizes other than those used for tracing.
    """
    return {
        name: traced.difference(read_network(folder / name))
        for name, traced in traced_networks(parts).items()
    }


def embedded(_: Path) -> ModelParts:
    return load_parts(EMBEDDED["emoji"])


def inpainting(folder: Path) -> ModelParts:
    return make_task_model(folder, "inpaint")


def xl_inpainting(folder: Path) -> ModelParts:
    return make_task_model(folder, "inpaint", make_sdxl)


@pytest.mark.parametrize(
    "make",
    [
        make_sd2,
        make_sdxl,
        pytest.param(inpainting, marks=pytest.mark.slow),
        pytest.param(xl_inpainting, marks=pytest.mark.slow),
        pytest.param(make_sd1, marks=pytest.mark.slow),
        pytest.param(embedded, marks=pytest.mark.slow),
    ],
)
def test_an_export_is_the_model(make: Callable[[Path], ModelParts], tmp_path: Path) -> None:
    parts, folder = make(tmp_path), tmp_path / "openvino"
    folder.mkdir()
    write_openvino(parts, folder)
    differences = differences_from(parts, folder)
    networks = NETWORKS | {"text_encoder_2"} if parts.family is SDXL else NETWORKS
    assert set(differences) == networks
    assert max(differences.values()) < 1e-4

    trial = trial_for(parts)
    write_tensors(tmp_path / "inputs", trial_inputs(parts, trial))
    pipe = read_openvino({"folder": str(folder)})
    theirs = readers.trial_outputs(pipe, {"trial": asdict(trial), "inputs": str(tmp_path / "inputs")})
    assert largest_difference(trial_outputs(parts, trial), theirs) < 0.1

    check_files(parts, folder, networks)
    parts.text_encoder.model.final_layer_norm.bias[0] += 1
    parts.autoencoder.vae.decoder.conv_out.bias[0] += 1
    changed = differences_from(parts, folder)
    assert {name for name in networks if changed[name] > 1e-2} == {"text_encoder", "vae_decoder"}


def check_files(parts: ModelParts, folder: Path, networks: set[str]) -> None:
    """The files that optimum-intel needs exist, and none of torch's."""
    for name in networks:
        assert sorted(path.name for path in (folder / name).iterdir()) == [
            "config.json",
            "openvino_model.bin",
            "openvino_model.xml",
        ]
    assert (
        read_json(folder / "vae_decoder" / "config.json")["scaling_factor"]
        == parts.autoencoder.scaling_factor
    )
    assert read_json(folder / "scheduler" / "scheduler_config.json") == parts.scheduler_config
    assert read_json(folder / "model_index.json")["_class_name"] == parts.family.pipeline_for(parts.task)
    assert (folder / "tokenizer" / "vocab.json").is_file()
    assert not list(folder.rglob("*.safetensors"))


def test_a_network_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unet/openvino_model\.xml cannot be read"):
        differences_from(make_sd1(tmp_path), tmp_path)
