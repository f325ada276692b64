"""A fake Hub on the loopback interface: it answers huggingface_hub's HTTP calls, stores uploads, and fails on demand.

with HubServer() as hub:
    hub.faults.append(Fault("PUT", "/storage/", 500))
    ...  # with HF_ENDPOINT=hub.url and HF_TOKEN=TOKEN
    hub.store.files("ann/model")
"""

import re
import threading
from collections.abc import Callable, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from tests.support.hub_http import Answer, Fault, Handler, Request
from tests.support.hub_store import Entry, Repository, Store

TOKEN = "hf_" + "abcdefghij" * 3
USER = "ann"


def refusal(status: int, code: str = "", told: str = "refused") -> Answer:
    named = {"X-Error-Code": code, "X-Error-Message": told} if code else {}
    return Answer(status, {"error": told}, named)


NO_REPOSITORY = refusal(404, "RepoNotFound", "Repository not found")
NO_REVISION = refusal(404, "RevisionNotFound", "Invalid rev id")


class HubServer:
    """The server, which runs in a thread during the `with` block.

    Attributes:
        store: everything uploaded.
        requests: all requests.
        faults: the faults to inject, in order.
        multipart_above: files with more bytes are uploaded in parts of this size.
        altered: name -> wrong hash that the tree reports for a file.
        ignored: names of files that the repository's .gitignore leaves out.
        xet_folder: where Xet's client stores its chunks; the bytes of such files are not served.
        yaml_answer: the response of the check of the card's front matter.
    """

    def __init__(self) -> None:
        self.store = Store()
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.multipart_above = 1_000_000
        self.altered: dict[str, str] = {}
        self.ignored: set[str] = set()
        self.xet_folder: Path | None = None
        self.yaml_answer: dict[str, list[dict[str, str]]] = {"errors": [], "warnings": []}
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    def asked(self, method: str, path: str) -> list[Request]:
        """The requests with this method whose path matches."""
        return [r for r in self.requests if r.method == method and re.search(path, r.path)]

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def output(self, request: Request) -> Answer:
        """The Hub's response; one request at a time."""
        with self._lock:
            self.requests.append(request)
            for method, pattern, route in ROUTES:
                if request.method == method and (found := re.fullmatch(pattern, request.path)):
                    return route(self, request, **{k: unquote(v) for k, v in found.groupdict().items()})
        return refusal(404, told=f"no such page: {request.method} {request.path}")

    # Permissions

    def knows(self, request: Request) -> bool:
        return request.headers.get("Authorization") == f"Bearer {TOKEN}"

    def find(self, request: Request, repo: str) -> Repository | Answer:
        """A repository that the sender of a request may see."""
        if not self.knows(request) and request.headers.get("Authorization"):
            return refusal(401, told="Invalid credentials in Authorization header")
        repository = self.store.repositories.get(repo)
        if repository is None or (repository.private and not self.knows(request)):
            return (
                NO_REPOSITORY if self.knows(request) else refusal(401, "RepoNotFound", "no such repository")
            )
        return repository

    # The API

    def create(self, request: Request) -> Answer:
        if not self.knows(request):
            return refusal(401, told="Invalid username or password.")
        owner, name = request.body["organization"], request.body["name"]
        repo = f"{owner}/{name}"
        if owner != USER:
            return refusal(403, told="You don't have the rights to create a model under this namespace")
        if repo in self.store.repositories:
            return Answer(409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"})
        self.store.repositories[repo] = Repository(private=request.body.get("visibility") == "private")
        return Answer(body={"url": f"{self.url}/{repo}", "name": repo, "id": repo})

    def validate(self, request: Request) -> Answer:
        return Answer(400 if self.yaml_answer["errors"] else 200, self.yaml_answer)

    def info(self, request: Request, repo: str, rev: str = "main") -> Answer:
        repository = self.find(request, repo)
        if isinstance(repository, Answer):
            return repository
        if (sha := repository.find(rev)) is None:
            return NO_REVISION
        siblings = [{"rfilename": name} for name in repository.commits[sha]]
        told = {"id": repo, "modelId": repo, "sha": sha, "private": repository.private, "siblings": siblings}
        return Answer(body={**told, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, request: Request, repo: str, rev: str) -> Answer:
        """Two files per page, because a large repository has several pages."""
        repository = self.find(request, repo)
        if isinstance(repository, Answer):
            return repository
        if (sha := repository.find(rev)) is None:
            return NO_REVISION
        rows = [_row(name, entry, self.altered) for name, entry in sorted(repository.commits[sha].items())]
        start = int(request.query.get("cursor", 0))
        more = f"{self.url}{request.path}?recursive=true&cursor={start + 2}"
        headers = {"Link": f'<{more}>; rel="next"'} if start + 2 < len(rows) else {}
        return Answer(body=rows[start : start + 2], headers=headers)

    def preupload(self, request: Request, repo: str, rev: str) -> Answer:
        repository = self.find(request, repo)
        if isinstance(repository, Answer):
            return repository
        if (sha := repository.find(rev)) is None:
            return NO_REVISION
        there = repository.commits[sha]
        rows = []
        for file in request.body["files"]:
            name = file["path"]
            mode = "lfs" if name.endswith((".safetensors", ".bin", ".png")) else "regular"
            known = {"oid": there[name].oid} if name in there else {}
            rows.append({"path": name, "uploadMode": mode, "shouldIgnore": name in self.ignored, **known})
        return Answer(body={"files": rows})

    def commit(self, request: Request, repo: str, rev: str) -> Answer:
        repository = self.find(request, repo)
        if isinstance(repository, Answer):
            return repository
        is_pr = request.query.get("create_pr") == "1"
        if not is_pr and not repo.startswith(f"{USER}/"):
            return refusal(403, told="you may not write to this repository")
        sent = [line["value"] for line in request.body if line["key"] == "lfsFile"]
        if not self.xet_folder and (
            lost := [value["path"] for value in sent if value["oid"] not in self.store.blobs]
        ):
            return refusal(400, told=f"never uploaded: {lost}")
        oid = self.store.commit(repo, rev, request.body, is_pr=is_pr)
        told = {
            "success": True,
            "hookOutput": "",
            "commitOid": oid,
            "commitUrl": f"{self.url}/{repo}/commit/{oid}",
        }
        number = sum(name.startswith("refs/pr/") for name in repository.refs)
        return Answer(
            body={**told, "pullRequestUrl": f"{self.url}/{repo}/discussions/{number}"} if is_pr else told
        )

    # Large files

    def xet_token(self, request: Request, repo: str, rev: str) -> Answer:
        """For Xet's client, which can store into a folder instead of a server."""
        return Answer(body={"casUrl": f"local://{self.xet_folder}", "accessToken": "x", "exp": 2**31})

    def batch(self, request: Request, repo: str) -> Answer:
        rows = [self._actions(entry["oid"], entry["size"]) for entry in request.body["objects"]]
        return Answer(body={"transfer": "basic", "objects": rows})

    def _actions(self, oid: str, size: int) -> dict[str, Any]:
        """Where to upload a file; nowhere if it is already stored."""
        told = {"oid": oid, "size": size}
        if oid in self.store.blobs:
            return told
        place, header = f"{self.url}/storage/{oid}?signature=secret-{oid[:8]}", {}
        if size > self.multipart_above:
            count = -(-size // self.multipart_above)
            header = {f"{n:05}": f"{self.url}/storage/{oid}/{n}" for n in range(1, count + 1)}
            header["chunk_size"] = str(self.multipart_above)
            place = f"{self.url}/complete/{oid}"
        verify = {"href": f"{self.url}/verify/{oid}"}
        return {**told, "actions": {"upload": {"href": place, "header": header}, "verify": verify}}

    def put(self, request: Request, oid: str, number: str = "") -> Answer:
        if request.headers.get("Authorization"):
            return refusal(400, told="the storage is another host, which must not see the token")
        if number:
            self.store.parts[oid, int(number)] = request.body
            return Answer(headers={"ETag": f'"{number}-{len(request.body)}"'})
        self.store.keep(request.body)
        return Answer()

    def complete(self, request: Request, oid: str) -> Answer:
        numbers = [part["partNumber"] for part in request.body["parts"]]
        self.store.keep(b"".join(self.store.parts.pop((oid, number)) for number in numbers))
        return Answer()

    def verify(self, request: Request, oid: str) -> Answer:
        data = self.store.blobs.get(request.body["oid"])
        if data is None or len(data) != request.body["size"]:
            return refusal(422, told="the stored bytes have another hash")
        return Answer()

    # Downloads

    def resolve(self, request: Request, repo: str, rev: str, name: str) -> Answer:
        repository = self.find(request, repo)
        if isinstance(repository, Answer):
            return repository
        if (sha := repository.find(rev)) is None:
            return NO_REVISION
        if (entry := repository.commits[sha].get(name)) is None:
            return refusal(404, "EntryNotFound", "Entry not found")
        headers = {"ETag": f'"{entry.oid}"', "X-Repo-Commit": sha}
        if entry.is_lfs:
            headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        return Answer(body=self.store.blobs[entry.sha256], headers=headers)


def _row(name: str, entry: Entry, altered: Mapping[str, str]) -> dict[str, Any]:
    """A file in the listing of a revision."""
    oid = altered.get(name, entry.oid)
    row = {"type": "file", "path": name, "size": entry.size, "oid": entry.git_sha1 if entry.is_lfs else oid}
    return {**row, "lfs": {"oid": oid, "size": entry.size, "pointerSize": 130}} if entry.is_lfs else row


_REPO, _REV = r"(?P<repo>[^/]+/[^/]+)", r"(?P<rev>[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("POST", "/api/repos/create", HubServer.create),
    ("POST", "/api/validate-yaml", HubServer.validate),
    ("GET", f"/api/models/{_REPO}", HubServer.info),
    ("GET", f"/api/models/{_REPO}/revision/{_REV}", HubServer.info),
    ("GET", f"/api/models/{_REPO}/tree/{_REV}", HubServer.tree),
    ("POST", f"/api/models/{_REPO}/preupload/{_REV}", HubServer.preupload),
    ("POST", f"/api/models/{_REPO}/commit/{_REV}", HubServer.commit),
    ("GET", f"/api/models/{_REPO}/xet-write-token/{_REV}", HubServer.xet_token),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", HubServer.batch),
    ("PUT", r"/storage/(?P<oid>\w+)", HubServer.put),
    ("PUT", r"/storage/(?P<oid>\w+)/(?P<number>\d+)", HubServer.put),
    ("POST", r"/complete/(?P<oid>\w+)", HubServer.complete),
    ("POST", r"/verify/(?P<oid>\w+)", HubServer.verify),
    ("GET", rf"/{_REPO}/resolve/{_REV}/(?P<name>.+)", HubServer.resolve),
    ("HEAD", rf"/{_REPO}/resolve/{_REV}/(?P<name>.+)", HubServer.resolve),
]
