"""Which files of a Hub repository are downloaded, and of which revision; with a real server and a separate cache."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from ldm.errors import UserError
from ldm.models.control.load_networks import load_controls
from ldm.models.loading.components import save_network
from ldm.models.loading.model import load_parts, save_parts
from ldm.models.loading.source import HUB_ID, find_model
from tests.support.hostile_files import code_that_makes, edit_json, pickle_that_makes
from tests.support.hub_server import HubServer
from tests.support.hub_store import Entry, Repository, git_hash
from tests.support.tiny_controls import make_controlnet
from tests.support.tiny_models import make_sd1
from tests.support.tiny_push import given_hub  # noqa: F401  # a fixture

FETCHED = [
    "ldm.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_parts(make_sd1(tmp_path_factory.mktemp("tokenizer")), folder)
    return folder


@pytest.fixture
def cache(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate cache for the test, filled from that Hub."""
    files = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def publish(hub: HubServer, folder: Path, revision: str = "main") -> None:
    """Commit a folder's files unchanged to a branch of ann/model."""
    repository = hub.store.repositories.setdefault("ann/model", Repository(private=False))
    files = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        hub.store.blobs[sha256] = data
        is_lfs = path.suffix == ".safetensors"
        files[path.relative_to(folder).as_posix()] = Entry(sha256, len(data), git_hash(data), is_lfs)
    repository.refs[revision] = repository.record(files)


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_only_what_is_loaded_is_fetched(hub: HubServer, saved: Path, tmp_path: Path, cache: Path) -> None:
    model, marker = Path(shutil.copytree(saved, tmp_path / "model")), tmp_path / "it-ran"
    for name in ("model.py", "unet/unet.py", "tokenizer/tokenizer.py"):
        (model / name).write_text(code_that_makes(marker))
    for name in ("unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "model.ckpt"):
        (model / name).write_bytes(pickle_that_makes(marker))
    for name in ("adapter_config.json", "text_encoder/adapter_config.json", "unet/other_config.json"):
        (model / name).write_text("{}")
    half = model / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(model / "unet" / "diffusion_pytorch_model.safetensors", half)
    publish(hub, model)
    folder, model_id = find_model("ann/model")
    assert model_id == "ann/model" and folder.is_relative_to(cache)
    assert files_of(folder) == FETCHED
    assert not hub.asked("GET", r"\.(py|bin|ckpt)$") and not hub.asked("HEAD", r"\.(py|bin|ckpt)$")
    load_parts(folder)
    assert not marker.exists()


@pytest.mark.usefixtures("cache")
def test_a_revision_is_named_after_an_at(hub: HubServer, saved: Path, tmp_path: Path) -> None:
    publish(hub, saved)
    tagged = Path(shutil.copytree(saved, tmp_path / "tagged"))
    edit_json(tagged / "ldm.json", defaults={"height": 24})
    publish(hub, tagged, "v1.0")
    folder, model_id = find_model("ann/model@v1.0")
    assert model_id == "ann/model@v1.0"
    assert load_parts(folder).defaults.height == 24
    assert load_parts(find_model("ann/model")[0]).defaults.height == 16
    commit = hub.store.repositories["ann/model"].refs["v1.0"]
    assert find_model(f"ann/model@{commit}")[0] == folder
    with pytest.raises(UserError, match="the Hub has no model with that id at 'v2'") as caught:
        find_model("ann/model@v2")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("cache")
def test_a_variant_is_fetched_where_there_is_nothing_else(
    hub: HubServer, saved: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    save_parts(load_parts(saved), half, dtype=torch.bfloat16, variant="bf16", max_shard_size="50KB")
    publish(hub, half)
    found = files_of(find_model("ann/model")[0])
    assert "unet/diffusion_pytorch_model.safetensors.index.bf16.json" in found
    load_parts(find_model("ann/model")[0])


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.usefixtures("cache")
def test_a_controlnet_is_a_hub_id_as_well(
    hub: HubServer, saved: Path, tmp_path: Path, variant: str | None
) -> None:
    parts, marker = load_parts(saved), tmp_path / "it-ran"
    folder = tmp_path / "net"
    save_network(make_controlnet(parts), folder, torch.float32, "10GB", variant)
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle_that_makes(marker))
    (folder / "net.py").write_text(code_that_makes(marker))
    publish(hub, folder)
    control = load_controls({"canny": "ann/model@main"}, parts)["canny"]
    assert (control.name, control.kind) == ("ann/model@main", "canny")
    assert not hub.asked("GET", r"\.(py|bin)$") and not marker.exists()
    with pytest.raises(UserError, match="the Hub has no model with that id") as refused:
        load_controls({"canny": "ann/other"}, parts)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "is_id"),
    [
        ("user/name", True),
        ("user/name@main", True),
        ("user/name@refs/pr/1", True),
        ("user/name@", False),
        ("user/name@/etc", False),
        ("user/name@../../elsewhere", False),
        ("user/name@a/../b", False),
        ("user/name@-x", False),
        ("user/name/more", False),
    ],
)
def test_hub_ids(name: str, is_id: bool) -> None:
    assert bool(HUB_ID.fullmatch(name)) == is_id
