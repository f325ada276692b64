"""Pushing when something goes wrong: what is repeated, what is reported, and that no secret is in the messages."""

import traceback
from pathlib import Path

import pytest

from ldm.errors import UserError
from ldm.export.hub.failures import HTTP_ERROR, Failure, failure_of, redact
from ldm.export.hub.upload import push_folder
from tests.support.hub_http import CUT, LOST, Fault
from tests.support.hub_server import TOKEN, USER, HubServer
from tests.support.hub_store import Repository
from tests.support.tiny_push import SENT, given_folder, given_hub, given_waits  # noqa: F401  # fixtures

REPO = f"{USER}/model"


def arrives(hub: HubServer, folder: Path, fault: Fault) -> list[str]:
    """Push in spite of a fault; returns the messages."""
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
    """The one-line error of a push; neither it nor the traceback contains a secret."""
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
def test_a_request_is_repeated_after_a_server_error(
    hub: HubServer, folder: Path, waits: list[float], method: str, path: str
) -> None:
    said = arrives(hub, folder, Fault(method, path, 500))
    assert len(said) in (1, 2)  # ours in one line, the library's in two
    assert waits == [1.0]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/repos/create"), ("PUT", "/storage/"), ("POST", "/commit/")]
)
def test_we_wait_as_long_as_the_hub_asks(
    hub: HubServer, folder: Path, waits: list[float], method: str, path: str
) -> None:
    arrives(hub, folder, Fault(method, path, 429, headers={"Retry-After": "7"}))
    assert waits in ([7.0], [8.0])  # the library adds one


def test_a_wait_that_is_too_long_ends_the_push(hub: HubServer, folder: Path, waits: list[float]) -> None:
    told = refused(hub, folder, Fault("POST", "/commit/", 429, headers={"Retry-After": "3600"}))
    assert told.startswith(
        "the Hub limits the rate of requests (429: it does not work today): push again later"
    )
    assert waits == []


@pytest.mark.parametrize("parts", [False, True])
def test_a_connection_cut_while_a_file_is_sent(
    hub: HubServer, folder: Path, waits: list[float], parts: bool
) -> None:
    hub.multipart_above = 1000 if parts else 1_000_000
    arrives(hub, folder, Fault("PUT", "/storage/", CUT, times=2))
    assert len(waits) == 2


def test_a_commit_whose_response_was_lost_is_not_made_twice(
    hub: HubServer, folder: Path, waits: list[float]
) -> None:
    said = arrives(hub, folder, Fault("POST", "/commit/", LOST))
    assert len(hub.asked("POST", "/commit/")) == 1
    assert any("No files have been modified" in line for line in said)


def test_a_repository_whose_response_was_lost(hub: HubServer, folder: Path, waits: list[float]) -> None:
    arrives(hub, folder, Fault("POST", "/repos/create", LOST))
    assert len(hub.asked("POST", "/repos/create")) == 2  # the second response was 409
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
            f"the token has no permission for this on {REPO} (403: it does not work today): use a token with write",
        ),
        (
            404,
            f"the Hub has no {REPO}, or no such revision of it (404: it does not work today): check the names",
        ),
        (409, f"{REPO} was changed at the same time (409: it does not work today): push again"),
        (
            413,
            "a file or the request is too large for the Hub (413: it does not work today): export again with",
        ),
        (418, "the Hub refuses (418: it does not work today): fix the cause and push again"),
    ],
)
def test_a_refusal_is_reported_in_one_line(
    hub: HubServer, folder: Path, waits: list[float], status: int, told: str
) -> None:
    assert refused(hub, folder, Fault("POST", "/commit/", status)).startswith(told)
    assert (hub.store.files(REPO), waits) == ({}, [])


def test_refusals_of_the_real_kind(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(hub, folder, repo_id="bea/model").startswith(
        "the token has no permission for this on bea/model (403"
    )
    assert refused(hub, folder, revision="nowhere").startswith(f"the Hub has no {REPO}, or no such revision")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "z" * 30)
    assert refused(hub, folder).startswith("the Hub does not accept the token (401")


def test_a_storage_that_refuses_a_file(hub: HubServer, folder: Path, waits: list[float]) -> None:
    told = refused(hub, folder, Fault("POST", "/verify/", 422, told="the stored bytes have another hash"))
    assert told.startswith("the Hub refuses (422: the stored bytes have another hash)")
    assert hub.store.files(REPO) == {}


def test_a_hub_that_stays_unavailable(hub: HubServer, folder: Path, waits: list[float]) -> None:
    told = refused(hub, folder, Fault("POST", "/commit/", 503, times=99))
    assert told.startswith("the Hub is unavailable (503: it does not work today): push again later")
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_an_unreachable_hub(hub: HubServer, folder: Path, waits: list[float]) -> None:
    hub.__exit__(None, None, None)
    assert refused(hub, folder).startswith("the Hub cannot be reached (ConnectError): check the network")


def test_invalid_front_matter(hub: HubServer, folder: Path) -> None:
    hub.yaml_answer["warnings"] = [{"message": "empty or missing yaml metadata"}]
    said: list[str] = []
    push_folder(folder, REPO, say=said.append)
    assert said == ["Warnings while validating metadata in README.md: - empty or missing yaml metadata"]
    hub.yaml_answer = {"errors": [{"message": '"license" must be one of ...'}], "warnings": []}
    assert '"license" must be one of' in refused(hub, folder, repo_id=f"{USER}/other")


def test_an_error_without_a_request_is_a_failure() -> None:
    """httpx raises an error of its own if no request was recorded."""
    assert failure_of(HTTP_ERROR("broken")) == Failure(None, "", "HTTPError")
    assert failure_of(ValueError("other")) is None


def test_secrets_are_hidden() -> None:
    told = f"PUT https://s3/x?X-Amz-Signature=9f with {TOKEN}, Bearer xyz, my-own and hf_{'q' * 20}?"
    assert (
        redact(told, "my-own") == "PUT https://s3/x?[hidden] with [hidden], [hidden] [hidden] and [hidden]?"
    )
