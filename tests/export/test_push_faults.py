"""Pushing while something goes wrong: what is tried again, what is told, and that no secret is in it."""

import traceback
from pathlib import Path

import pytest

from ldm.errors import UserError
from ldm.export.hub.failures import redact
from ldm.export.hub.upload import push_folder
from tests.support.hub_http import CUT, LOST, Fault
from tests.support.hub_server import TOKEN, USER, HubServer
from tests.support.hub_store import Repository
from tests.support.tiny_push import SENT, given_folder, given_hub, given_waits  # noqa: F401  # fixtures

REPO = f"{USER}/model"


def arrives(hub: HubServer, folder: Path, fault: Fault) -> list[str]:
    """Push in spite of a fault; gives what was said."""
    hub.faults.append(fault)
    said: list[str] = []
    push_folder(folder, REPO, say=said.append)
    assert fault.times == 0
    assert hub.store.files(REPO) == {name: (folder / name).read_bytes() for name in SENT}
    assert not [line for line in said if "http" in line or TOKEN in line]
    return said


def refused(
    hub: HubServer, folder: Path, *faults: Fault, repo_id: str = REPO, revision: str | None = None
) -> str:
    """The one line by which a push ends; no secret is in it, nor in the traceback."""
    hub.faults += faults
    with pytest.raises(UserError) as raised:
        push_folder(folder, repo_id, revision=revision)
    told = "".join(traceback.format_exception(raised.value))
    assert not [secret for secret in (TOKEN, "signature", "\nhuggingface_hub") if secret in told]
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/models/"),
        ("POST", "/api/repos/create"),
        ("POST", "/preupload/"),
        ("POST", "/objects/batch"),
        ("PUT", "/storage/"),
        ("POST", "/verify/"),
        ("POST", "/commit/"),
        ("GET", "/tree/"),
    ],
)
def test_a_server_error_passes(
    hub: HubServer, folder: Path, waits: list[float], method: str, path: str
) -> None:
    said = arrives(hub, folder, Fault(method, path, 500))
    assert len(said) in (1, 2)  # ours in one line, the library's in two
    assert waits == [1.0]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/repos/create"), ("PUT", "/storage/"), ("POST", "/commit/")]
)
def test_the_hub_is_given_the_time_it_asks_for(
    hub: HubServer, folder: Path, waits: list[float], method: str, path: str
) -> None:
    arrives(hub, folder, Fault(method, path, 429, headers={"Retry-After": "7"}))
    assert waits in ([7.0], [8.0])  # the library adds one


def test_a_pause_that_is_too_long_ends_the_push(hub: HubServer, folder: Path, waits: list[float]) -> None:
    told = refused(hub, folder, Fault("POST", "/commit/", 429, headers={"Retry-After": "3600"}))
    assert told.startswith("the Hub asks for a pause (429: it does not work today): push again later")
    assert waits == []


@pytest.mark.parametrize("parts", [False, True])
def test_a_connection_cut_while_a_file_is_sent(
    hub: HubServer, folder: Path, waits: list[float], parts: bool
) -> None:
    hub.multipart_above = 1000 if parts else 1_000_000
    arrives(hub, folder, Fault("PUT", "/storage/", CUT, times=2))
    assert len(waits) == 2


def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    hub: HubServer, folder: Path, waits: list[float]
) -> None:
    said = arrives(hub, folder, Fault("POST", "/commit/", LOST))
    assert len(hub.asked("POST", "/commit/")) == 1
    assert any("No files have been modified" in line for line in said)


def test_a_repository_whose_answer_was_lost(hub: HubServer, folder: Path, waits: list[float]) -> None:
    arrives(hub, folder, Fault("POST", "/repos/create", LOST))
    assert len(hub.asked("POST", "/repos/create")) == 2  # of which the second was answered by 409
    assert hub.store.repositories[REPO].private


def test_a_pull_request_is_not_opened_twice(hub: HubServer, folder: Path, waits: list[float]) -> None:
    repository = hub.store.repositories[REPO] = Repository(private=True)
    hub.faults.append(Fault("POST", "/commit/", LOST))
    with pytest.raises(UserError, match="the Hub cannot be reached"):
        push_folder(folder, REPO, create_pr=True)
    assert sorted(repository.refs) == ["main", "refs/pr/1"]
    hub.faults.append(Fault("POST", "/commit/", 429))
    push_folder(folder, REPO, create_pr=True)
    assert sorted(repository.refs) == ["main", "refs/pr/1", "refs/pr/2"]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (
            401,
            "the Hub does not accept the token (401: it does not work today): log in with `hf auth login`",
        ),
        (
            403,
            f"the token may not do this to {REPO} (403: it does not work today): use a token with write access",
        ),
        (
            404,
            f"the Hub has no {REPO}, or not this revision of it (404: it does not work today): check the names",
        ),
        (409, f"{REPO} was changed at the same time (409: it does not work today): push again"),
        (
            413,
            "the Hub finds a file or the request too large (413: it does not work today): export again with",
        ),
        (418, "the Hub refuses (418: it does not work today): mend what it names and push again"),
    ],
)
def test_a_refusal_is_told_in_one_line(
    hub: HubServer, folder: Path, waits: list[float], status: int, told: str
) -> None:
    assert refused(hub, folder, Fault("POST", "/commit/", status)).startswith(told)
    assert (hub.store.files(REPO), waits) == ({}, [])


def test_refusals_of_the_real_kind(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(hub, folder, repo_id="bea/model").startswith("the token may not do this to bea/model (403")
    assert refused(hub, folder, revision="nowhere").startswith(f"the Hub has no {REPO}, or not this revision")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "z" * 30)
    assert refused(hub, folder).startswith("the Hub does not accept the token (401")


def test_a_storage_that_refuses_what_it_was_sent(hub: HubServer, folder: Path, waits: list[float]) -> None:
    told = refused(hub, folder, Fault("POST", "/verify/", 422, told="the stored bytes have another hash"))
    assert told.startswith("the Hub refuses (422: the stored bytes have another hash)")
    assert hub.store.files(REPO) == {}


def test_a_hub_that_stays_out_of_order(hub: HubServer, folder: Path, waits: list[float]) -> None:
    told = refused(hub, folder, Fault("POST", "/commit/", 503, times=99))
    assert told.startswith("the Hub is out of order (503: it does not work today): push again later")
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_no_hub_at_all(hub: HubServer, folder: Path, waits: list[float]) -> None:
    hub.__exit__(None, None, None)
    assert refused(hub, folder).startswith("the Hub cannot be reached (ConnectError): check the network")


def test_front_matter_that_the_hub_finds_wrong(hub: HubServer, folder: Path) -> None:
    hub.yaml_answer["warnings"] = [{"message": "empty or missing yaml metadata"}]
    said: list[str] = []
    push_folder(folder, REPO, say=said.append)
    assert said == ["Warnings while validating metadata in README.md: - empty or missing yaml metadata"]
    hub.yaml_answer = {"errors": [{"message": '"license" must be one of ...'}], "warnings": []}
    assert '"license" must be one of' in refused(hub, folder, repo_id=f"{USER}/other")


def test_secrets_are_hidden() -> None:
    told = f"PUT https://s3/x?X-Amz-Signature=9f with {TOKEN}, Bearer xyz, my-own and hf_{'q' * 20}?"
    assert (
        redact(told, "my-own") == "PUT https://s3/x?[hidden] with [hidden], [hidden] [hidden] and [hidden]?"
    )
