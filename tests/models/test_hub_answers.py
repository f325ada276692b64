"""A server that does not answer as the Hub does: one line, and nothing is written outside the cache."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from ldm.errors import UserError
from ldm.export.hub.upload import push_folder
from ldm.models.loading.source import find_model
from tests.support.hub_http import Answer, Request
from tests.support.hub_server import TOKEN, HubServer
from tests.support.tiny_push import make_folder

COMMIT = "0" * 40
SHAPES: dict[str, Any] = {
    "a list": [], "null": None, "a number": 7, "text": "no", "no files": {"id": "a/b", "sha": COMMIT},
    "files that are numbers": {"id": "a/b", "sha": COMMIT, "siblings": [1]},
    "files without names": {"id": "a/b", "sha": COMMIT, "siblings": [{}]},
    "a number as a commit": {"id": "a/b", "sha": 7, "siblings": [{"rfilename": "model_index.json"}]},
    "a file outside": {"id": "a/b", "sha": COMMIT, "siblings": [{"rfilename": "unet/../../../model_index.json"}]},
    "a file far outside": {"id": "a/b", "sha": COMMIT, "siblings": [
        {"rfilename": "unet/diffusion_pytorch_model-/../../../../../../x/-of-1.safetensors"}]},
}  # fmt: skip
REDIRECTS = {
    "for ever": Answer(302, b"", {"Location": "/api/models/a/b"}),
    "to nowhere": Answer(302, b"", {"Location": "http://127.0.0.1:9/"}),
    "to no address": Answer(302, b"", {"Location": "http://["}),
    "a page": Answer(200, b"<html>log in</html>", {"Content-Type": "text/html"}),
    "broken JSON": Answer(200, b'{"id": ', {"Content-Type": "application/json"}),
}
ANSWERS = {name: Answer(200, shape) for name, shape in SHAPES.items()} | REDIRECTS


class Stranger(HubServer):
    """Gives the same answer to every request."""

    answer = Answer()

    def output(self, request: Request) -> Answer:
        return self.answer


@pytest.fixture(name="server")
def given_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stranger]:
    with Stranger() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("time.sleep", lambda _: None)
        yield server
        huggingface_hub.close_session()


def files_outside(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts]


@pytest.mark.parametrize("name", ANSWERS)
def test_a_download_from_a_strange_server_fails_in_one_line(
    server: Stranger, tmp_path: Path, name: str
) -> None:
    server.answer = ANSWERS[name]
    try:
        folder, _ = find_model("a/b")
    except UserError as error:
        assert "'a/b'" in error.what and "\n" not in str(error)
    else:  # an answer that lists nothing to load gives an empty folder, which loading refuses
        assert not (folder / "model_index.json").exists()
    assert files_outside(tmp_path) == []


@pytest.mark.parametrize("name", ANSWERS)
def test_a_push_to_a_strange_server_fails_in_one_line(server: Stranger, tmp_path: Path, name: str) -> None:
    server.answer = ANSWERS[name]
    with pytest.raises(UserError) as caught:
        push_folder(make_folder(tmp_path / "model"), "ann/model", public=True)
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value)
