"""`ldm import`: turns one file into a folder, and takes nothing but tensors from a pickle."""

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from ldm.cli.app import app
from ldm.errors import UserError
from ldm.export.formats.single_file import write_single_file
from ldm.io.files import sha256_file
from ldm.io.json_files import read_json
from ldm.models.loading.model import load_parts
from ldm.models.loading.pickled_file import PASSED_ON, convert, environment, unpickled
from ldm.models.parts import ModelParts
from tests.support.tiny_single_file import make_narrow_sd1

pytestmark = pytest.mark.filterwarnings("ignore:.* does not say what it predicts. as usual")


@pytest.fixture(scope="module")
def parts() -> ModelParts:
    return make_narrow_sd1()


@pytest.fixture(scope="module")
def files(parts: ModelParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same model twice: m.safetensors, and m.ckpt as training programs write it."""
    folder = tmp_path_factory.mktemp("files")
    write_single_file(parts, folder / "m.safetensors", dtype=torch.float32, metadata={})
    whole = {"state_dict": load_file(folder / "m.safetensors"), "global_step": 3, "epoch": 1}
    torch.save(whole, folder / "m.ckpt")
    return folder


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def import_model(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["import", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*arguments: object) -> str:
    """The one-line error of an import, which leaves no folder behind."""
    result = import_model(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert not Path("dest").exists()
    return line.removeprefix("error: ")


def unet_of(parts: ModelParts) -> dict[str, Any]:
    return dict(parts.denoiser.unet.state_dict())


@pytest.mark.parametrize(
    ("name", "options"),
    [("m.safetensors", []), pytest.param("m.ckpt", ["--allow-pickle"], marks=pytest.mark.slow)],
)
def test_a_file_becomes_a_folder(name: str, options: list[str], parts: ModelParts, files: Path) -> None:
    result = import_model(files / name, "dest", *options)
    assert (result.exit_code, result.stdout) == (0, "dest\n")
    assert result.stderr.splitlines() == [
        f"warning: {name} does not say what it predicts; as usual, it is taken for epsilon. If the images are noise, "
        "choose with --prediction-type."
    ]
    folder = load_parts(Path("dest"))
    for ours, theirs in zip(parts.modules().values(), folder.modules().values(), strict=True):
        expected, found = ours.state_dict(), theirs.state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    provenance = read_json(Path("dest") / "ldm.json")["provenance"]
    assert provenance == {"imported_from": name, "sha256": sha256_file(files / name)}
    assert str(files) not in (Path("dest") / "ldm.json").read_text()


def test_the_option_for_the_prediction_type_wins(files: Path) -> None:
    import_model(files / "m.safetensors", "dest", "--prediction-type", "v_prediction", "--dtype", "float16")
    config = read_json(Path("dest") / "scheduler" / "scheduler_config.json")
    assert config["prediction_type"] == "v_prediction"
    stored = load_file(Path("dest") / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}


class Hostile:
    """A pickle of it runs a command, which leaves a file named `ran`."""

    def __init__(self, place: Path) -> None:
        self.command = f"touch {place / 'ran'}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    path, ran = tmp_path / "evil.ckpt", tmp_path / "ran"
    torch.save({"state_dict": {"a": torch.zeros(1), "b": Hostile(tmp_path)}}, path)
    assert "evil.ckpt is a pickle, which can contain code: add --allow-pickle" in refused(path, "dest")
    line = refused(path, "dest", "--allow-pickle")
    wanted = "evil.ckpt cannot be read (it asks for posix.system, and only tensors are read): ask for its safetensors"
    assert line.endswith(wanted)
    for protocol, message in ((2, "it asks for posix.system"), (4, "it contains more than tensors")):
        path.write_bytes(pickle.dumps(Hostile(tmp_path), protocol))  # as before there were archives
        with pytest.raises(ValueError, match=message):
            convert(path, tmp_path / "evil.safetensors")
    assert not ran.exists()
    pickle.loads(path.read_bytes())
    assert ran.exists()  # the fixture is what it claims to be


def test_only_plain_tensors_by_name_come_through(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "sparse": torch.eye(2).to_sparse(), "b": "text", "c": [1]}, "x.ckpt")
    convert(Path("x.ckpt"), Path("x.safetensors"))
    assert list(load_file("x.safetensors")) == ["a"]
    torch.save([torch.ones(2)], "x.ckpt")
    with pytest.raises(ValueError, match="it has no named tensors"):
        convert(Path("x.ckpt"), Path("y.safetensors"))


def test_the_class_that_the_original_checkpoints_name_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    checkpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.__dict__["ModelCheckpoint"] = checkpoint
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.save({"callbacks": {checkpoint: {"best": 1.0}}, "state_dict": {"a": torch.ones(2)}}, "x.ckpt")
    convert(Path("x.ckpt"), Path("x.safetensors"))
    assert list(load_file("x.safetensors")) == ["a"]


def test_the_process_that_reads_a_pickle_is_given_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "not-to-be-seen")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    given = environment()
    assert "not-to-be-seen" not in str(given)
    assert given.keys() <= {*PASSED_ON, "PYTHONPATH"}
    assert "elsewhere" not in given["PYTHONPATH"]


def test_modules_in_the_working_directory_are_not_imported() -> None:
    torch.save({"a": torch.ones(2)}, "x.ckpt")
    Path("torch.py").write_text("raise SystemExit('the wrong torch')")
    with unpickled(Path("x.ckpt")) as path:
        assert list(load_file(path)) == ["a"]
        place = path.parent
    assert not place.exists()


def test_other_files_are_refused_by_name(files: Path, tmp_path: Path) -> None:
    assert "none.safetensors is not a file" in refused("none.safetensors", "dest")
    (tmp_path / "m.gguf").write_bytes(b"")
    assert "m.gguf is not a model file: name a file that ends in .safetensors" in refused("m.gguf", "dest")
    assert "unknown --dtype 'fp16'" in refused(files / "m.safetensors", "dest", "--dtype", "fp16")


@pytest.mark.slow
def test_truncated_pickles_and_other_contents_are_refused_by_name(files: Path, tmp_path: Path) -> None:
    torch.save({"model.diffusion_model.out.2.bias": torch.ones(4)}, "half.ckpt")
    line = refused("half.ckpt", "dest", "--allow-pickle")
    assert line.startswith("half.ckpt holds no autoencoder")
    (tmp_path / "torn.ckpt").write_bytes((files / "m.ckpt").read_bytes()[:-1000])
    assert "torn.ckpt cannot be read" in refused("torn.ckpt", "dest", "--allow-pickle")


def test_an_existing_folder_is_kept(files: Path) -> None:
    Path("dest").mkdir()
    Path("dest/mine").write_text("kept")
    result = import_model(files / "m.safetensors", "dest")
    assert (result.exit_code, "dest exists already" in result.stderr) == (2, True)
    assert Path("dest/mine").read_text() == "kept"
    with pytest.raises(UserError, match="does not exist"), unpickled(Path("none.ckpt")):
        pass
