"""Pushing a folder: what arrives, who can see it, and the comparison afterwards."""

import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from ldm.errors import UserError
from ldm.export.artefact import export
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import load_source
from ldm.export.hub.upload import push_folder
from ldm.io.files import sha256_file, write_json, write_tensors
from ldm.pipeline.pipeline import Pipeline
from tests.support.hub_server import TOKEN, HubServer
from tests.support.hub_store import Repository
from tests.support.tiny_models import make_sd1
from tests.support.tiny_push import SENT, given_folder, given_hub, make_folder  # noqa: F401  # fixtures


def test_a_folder_arrives_complete_and_private(hub: HubServer, folder: Path) -> None:
    report = push_folder(folder, "ann/model")
    assert hub.store.repositories["ann/model"].private
    assert hub.store.files("ann/model") == {name: (folder / name).read_bytes() for name in SENT}
    assert [file.name for file in report.files] == SENT
    assert (report.is_private, report.others) == (True, (".gitattributes",))
    assert report.revision == hub.store.repositories["ann/model"].refs["main"]
    assert report.url == f"{hub.url}/ann/model/commit/{report.revision}"
    assert len(hub.asked("POST", "/commit/")) == 1


@pytest.mark.slow
def test_what_export_writes_is_sent_whole(hub: HubServer, tmp_path: Path) -> None:
    Pipeline(make_sd1(tmp_path / "tokenizer")).save(tmp_path / "model")
    export(load_source(str(tmp_path / "model")), tmp_path / "dest", ExportOptions(num_samples=0))
    report = push_folder(tmp_path / "dest", "ann/model")
    sent = {path.relative_to(tmp_path / "dest").as_posix() for path in (tmp_path / "dest").rglob("*.*")}
    assert {file.name for file in report.files} == sent and "manifest.json" not in sent


def test_an_export_that_lists_the_index_of_its_model_is_sent(hub: HubServer, tmp_path: Path) -> None:
    made = make_folder(tmp_path / "model")
    write_json(made / "export.json", {"files": {"manifest.json": {"sha256": "0" * 64, "size_bytes": 2}}})
    push_folder(made, "ann/model")
    assert "export.json" in hub.store.files("ann/model")


def test_the_token_is_sent_to_the_hub_only(hub: HubServer, folder: Path) -> None:
    push_folder(folder, "ann/model")
    assert hub.asked("PUT", "/storage/")  # which refuses a token
    for request in hub.requests:
        told = request.headers.get("Authorization")
        assert told == (None if request.path.startswith("/storage/") else f"Bearer {TOKEN}")
        assert TOKEN not in f"{request.path} {request.query} {request.body}"


def test_large_files_go_up_in_parts(hub: HubServer, folder: Path) -> None:
    hub.multipart_above = 1000
    push_folder(folder, "ann/model")
    assert hub.asked("POST", "/complete/")
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (
        len(hub.asked("PUT", "/storage/")) == -(-(folder / name).stat().st_size // 1000) + 1
    )  # and an image
    assert hub.store.files("ann/model")[name] == (folder / name).read_bytes()


def test_a_file_that_has_arrived_is_not_sent_again(hub: HubServer, tmp_path: Path) -> None:
    made = make_folder(tmp_path / "model")
    first = push_folder(made, "ann/model")
    num_sent = len(hub.asked("PUT", "/storage/"))
    said: list[str] = []
    assert push_folder(made, "ann/model", say=said.append).revision == first.revision
    assert len(hub.asked("POST", "/commit/")) == 1
    assert "No files have been modified" in said[0]

    write_json(made / "ldm.json", {"defaults": {"height": 64}})
    second = push_folder(made, "ann/model")
    assert second.revision != first.revision
    keys = [(line["key"], line["value"].get("path")) for line in hub.asked("POST", "/commit/")[1].body]
    assert keys == [("header", None), ("file", "ldm.json")]
    assert len(hub.asked("PUT", "/storage/")) == num_sent


def test_older_files_are_listed(hub: HubServer, tmp_path: Path) -> None:
    made = make_folder(tmp_path / "model")
    old = made / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    write_tensors(old, {"conv_in.weight": torch.ones(4)})
    push_folder(made, "ann/model")
    old.unlink()
    others = push_folder(made, "ann/model").others
    assert others == (".gitattributes", "unet/diffusion_pytorch_model.fp16.safetensors")


def test_nothing_is_published_unless_asked_for(hub: HubServer, folder: Path) -> None:
    hub.store.repositories["ann/shown"] = Repository(private=False)
    with pytest.raises(UserError, match=r"ann/shown is public: add --public"):
        push_folder(folder, "ann/shown")
    assert hub.store.files("ann/shown") == {}
    assert {request.method for request in hub.requests} == {"GET"}

    assert not push_folder(folder, "ann/shown", public=True).is_private
    assert sorted(hub.store.files("ann/shown")) == SENT
    assert not push_folder(folder, "ann/new", public=True).is_private
    assert not hub.store.repositories["ann/new"].private


def test_a_private_repository_is_not_made_public(hub: HubServer, folder: Path) -> None:
    push_folder(folder, "ann/model")
    assert push_folder(folder, "ann/model", public=True).is_private
    assert hub.store.repositories["ann/model"].private


def test_a_pull_request(hub: HubServer, folder: Path) -> None:
    hub.store.repositories["bea/model"] = Repository(private=False)
    report = push_folder(folder, "bea/model", public=True, create_pr=True)
    assert (report.revision, report.url) == ("refs/pr/1", f"{hub.url}/bea/model/discussions/1")
    assert hub.store.files("bea/model") == {}
    assert sorted(hub.store.files("bea/model", "refs/pr/1")) == SENT
    with pytest.raises(UserError, match="the Hub has no bea/other that this token can access"):
        push_folder(folder, "bea/other", create_pr=True)
    assert "bea/other" not in hub.store.repositories


def test_a_branch(hub: HubServer, folder: Path) -> None:
    repository = hub.store.repositories["ann/model"] = Repository(private=True)
    repository.refs["try"] = repository.refs["main"]
    assert push_folder(folder, "ann/model", revision="try").revision == repository.refs["try"]
    assert sorted(hub.store.files("ann/model", "try")) == SENT
    assert hub.store.files("ann/model") == {}


@pytest.mark.parametrize("name", ["README.md", "unet/diffusion_pytorch_model.safetensors"])
def test_a_file_that_arrived_changed_is_noticed(hub: HubServer, folder: Path, name: str) -> None:
    hub.altered[name] = "a" * 64
    with pytest.raises(UserError, match=f"ann/model differs from the files sent: {name}: push again"):
        push_folder(folder, "ann/model")


def test_a_file_that_the_hub_leaves_out_is_noticed(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "ignored", {"ldm.json"})
    with pytest.raises(UserError, match=r"differs from the files sent: ldm\.json"):
        push_folder(folder, "ann/model")


def test_the_files_sent_must_be_the_verified_ones(hub: HubServer, tmp_path: Path) -> None:
    made = make_folder(tmp_path / "model")
    entries = {name: {"sha256": sha256_file(made / name)} for name in SENT if name != "README.md"}
    write_json(made / "export.json", {"files": entries})
    push_folder(made, "ann/model")
    write_json(made / "unet" / "config.json", {"in_channels": 9})
    with pytest.raises(
        UserError, match=r"unet/config\.json has changed since it was verified \(export\.json\)"
    ):
        push_folder(made, "ann/other")
    (made / "ldm.json").unlink()
    with pytest.raises(UserError, match=r"ldm\.json is listed in export\.json but cannot be sent"):
        push_folder(made, "ann/other")
    assert "ann/other" not in hub.store.repositories


def test_private_data_is_found_before_any_request(hub: HubServer, tmp_path: Path) -> None:
    made = make_folder(tmp_path / "model")
    (made / "README.md").write_text(f"my token is {TOKEN}")
    with pytest.raises(
        UserError, match=r"nothing is sent.*README\.md \(line 1\): a token, hf_a\.\.\."
    ) as raised:
        push_folder(made, "ann/model")
    assert TOKEN not in str(raised.value)
    assert hub.requests == []


@pytest.mark.parametrize("repo_id", ["model", "a/b/c", "ann/", "ann/mo del", "ann/..", ""])
def test_a_wrong_name_is_refused(hub: HubServer, folder: Path, repo_id: str) -> None:
    with pytest.raises(UserError, match="write USER/NAME"):
        push_folder(folder, repo_id)
    assert hub.requests == []


def test_without_a_login(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(UserError, match="there is no Hub token: log in"):
        push_folder(folder, "ann/model")
    (tmp_path / "token").write_text(TOKEN)  # as `hf auth login` leaves it
    os.chmod(tmp_path / "token", 0o600)
    push_folder(folder, "ann/model")
    assert sorted(hub.store.files("ann/model")) == SENT


def test_offline_mode(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids access to the Hub"):
        push_folder(folder, "ann/model")
