"""A LoKr on a tiny model of both families: exported, verified, read by peft, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import ldm.export.verify.compare
from ldm.cli.app import app
from ldm.errors import UserError
from ldm.export.artefact import export
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import ExportSource, load_source
from ldm.export.verify import readers
from ldm.export.verify.check import check
from ldm.io.safetensors_header import read_header
from ldm.models.adapters.folder import LORA_FILE, Adapter, find_base, save_adapter
from ldm.models.adapters.lora import LoraSettings
from ldm.models.adapters.lora_names import LOKR_KINDS
from ldm.models.loading.model import load_parts, save_parts
from ldm.models.parts import ModelParts
from tests.support.slow_cases import rest_slow
from tests.support.tiny_loras import trained
from tests.support.tiny_models import make_sd1
from tests.support.tiny_single_file import make_narrow_sdxl

# peft asks the text encoders in a way that transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

QUIET = ExportOptions(num_samples=0)
SETTINGS = LoraSettings(kind="lokr", rank=2, alpha=3, factor=4, target_modules="all", text_encoder=True)


def narrow_sdxl(_: Path) -> ModelParts:
    """Other programs know its UNet, so kohya's names are those of single files."""
    return make_narrow_sdxl()


FAMILIES = {"sd1": make_sd1, "sdxl": narrow_sdxl}
PREFIXES = {
    "sd1": {"lora_unet_down_blocks_0", "lora_te_text_model"},
    "sdxl": {"lora_unet_input_blocks_4", "lora_te1_text_model", "lora_te2_text_model"},
}


@pytest.fixture(autouse=True)
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader runs in this process, which has diffusers loaded already."""
    monkeypatch.setattr(ldm.export.verify.compare, "_run", lambda task, _: readers.main([str(task)]))


@pytest.fixture(scope="module", params=rest_slow(FAMILIES, "sd1"))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, family: str) -> Path:
    """A LoKr on all networks of a model, stored as a run stores it; the model is beside it."""
    folder = tmp_path_factory.mktemp(family)
    save_parts(FAMILIES[family](folder / "tokenizers"), folder / "base")
    parts = load_parts(folder / "base")
    base = find_base(str(folder / "base"), parts)
    stored = Adapter(
        kind="lora",
        base=base.given,
        base_weights_hash=base.weights_hash,
        scheduler_config=parts.scheduler_config,
        settings=SETTINGS.model_dump(mode="json"),
        base_parts=dict(base.parts),
    )
    save_adapter(folder / "adapter", stored, trained(parts, SETTINGS), parts.defaults)
    return folder / "adapter"


@pytest.fixture(scope="module")
def source(adapter: Path) -> ExportSource:
    return load_source(adapter)


@pytest.mark.parametrize("form", ["lora-kohya", "lora-peft"])
def test_peft_draws_what_we_draw(adapter: Path, source: ExportSource, tmp_path: Path, form: str) -> None:
    (verdict,) = export(source, tmp_path / "out", replace(QUIET, format=form)).verdicts
    assert verdict.reader.startswith("peft") and verdict.largest_difference < 0.01
    assert verdict.lora_effect is not None and verdict.lora_effect > 1
    again = check(tmp_path / "out", str(adapter.parent / "base"))
    assert again.reader.startswith("peft") and again.largest_difference < 0.01


def test_the_names_and_the_header_are_those_of_other_programs(
    source: ExportSource, family: str, tmp_path: Path
) -> None:
    export(source, tmp_path / "out", replace(QUIET, format="lora-kohya"))
    file = next((tmp_path / "out").glob("*.safetensors"))
    header = read_header(file)
    for prefix in PREFIXES[family]:
        assert any(name.startswith(prefix) for name in header.tensors), prefix
    ends = {name.partition(".")[2] for name in header.tensors}
    assert {"alpha", "lokr_w1", "lokr_w2_a", "lokr_w2_b"} <= ends <= {"alpha", *LOKR_KINDS}
    found = header.metadata
    assert (found["ss_network_module"], found["ss_network_dim"]) == ("lycoris.kohya", "2")
    assert found["ss_network_args"] == '{"algo": "lokr", "factor": "4"}'
    card = (tmp_path / "out/README.md").read_text()
    assert "diffusers does not read a LoKr with these names" in card and "load_lora_weights" not in card
    assert "ldm generate" in card and "--lora" in card


def test_the_stored_adapter_is_verified(adapter: Path) -> None:
    verdict = check(adapter)
    assert verdict.reader.startswith("peft") and verdict.largest_difference < 0.01
    done = CliRunner().invoke(app, ["verify", str(adapter), "--no-draw"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["info", str(adapter)])
    assert done.exit_code == 0, done.output


def test_a_layer_without_a_factor_is_found(adapter: Path, tmp_path: Path) -> None:
    tensors = load_file(adapter / LORA_FILE)
    whole = next(name for name in tensors if name.endswith(".lokr_w2_b"))
    save_file({name: each for name, each in tensors.items() if name != whole}, tmp_path / "x.safetensors")
    done = CliRunner().invoke(app, ["verify", str(tmp_path / "x.safetensors"), "--no-draw"])
    assert done.exit_code == 2 and f"'{whole.removesuffix('.lokr_w2_b')}' has no lokr_w2_b" in done.output
    assert "has no down" not in done.output


def test_what_cannot_hold_it_is_refused(source: ExportSource, tmp_path: Path) -> None:
    for options in (replace(QUIET, format="lora-diffusers"), replace(QUIET, fuse=False)):
        with pytest.raises(UserError, match=r"is a LoKr, which diffusers' load_lora_weights does not read"):
            export(source, tmp_path / "out", options)
        assert not (tmp_path / "out").exists()
