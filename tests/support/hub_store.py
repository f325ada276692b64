"""The storage of the fake Hub: repositories, their commits and branches, and files by hash. No HTTP here."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any


def git_hash(data: bytes) -> str:
    """A file's SHA-1 in git."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A file in a commit: the SHA-256 of its bytes, whether it is stored by LFS, and its git hash."""

    sha256: str
    size: int
    git_sha1: str
    is_lfs: bool

    @property
    def oid(self) -> str:
        """The hash that changes with the file; also its ETag."""
        return self.sha256 if self.is_lfs else self.git_sha1


@dataclass
class Repository:
    """Branches and pull requests by name, and commits by hash."""

    private: bool
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        attributes = Entry("0" * 64, 0, git_hash(b""), is_lfs=False)
        self.refs["main"] = self.record({".gitattributes": attributes})

    def record(self, files: dict[str, Entry]) -> str:
        """Add a commit with these files; returns its hash."""
        said = json.dumps([len(self.commits), sorted((n, e.oid) for n, e in files.items())])
        oid = hashlib.sha1(said.encode()).hexdigest()
        self.commits[oid] = files
        return oid

    def find(self, revision: str) -> str | None:
        """The hash of a commit, given a branch's name or the hash."""
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass
class Store:
    """All repositories, and all bytes by SHA-256; parts of unfinished uploads by (SHA-256, number)."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=lambda: {"0" * 64: b""})
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)

    def keep(self, data: bytes) -> str:
        """Store bytes; returns their SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs[sha256] = data
        return sha256

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision by name, without those that the Hub added."""
        repository = self.repositories[repo_id]
        commit = repository.commits[repository.find(revision) or ""]
        return {n: self.blobs[e.sha256] for n, e in commit.items() if n != ".gitattributes"}

    def commit(self, repo_id: str, revision: str, lines: list[dict[str, Any]], *, is_pr: bool) -> str:
        """Apply the lines of a commit to a revision, or to a new pull request for it; returns the new hash."""
        import base64

        repository = self.repositories[repo_id]
        files = dict(repository.commits[repository.find(revision) or ""])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                data = base64.b64decode(value["content"])
                files[value["path"]] = Entry(self.keep(data), len(data), git_hash(data), is_lfs=False)
            elif line["key"] == "lfsFile":
                pointer = git_hash(value["oid"].encode())
                files[value["path"]] = Entry(value["oid"], value["size"], pointer, is_lfs=True)
        oid = repository.record(files)
        requests = sum(name.startswith("refs/pr/") for name in repository.refs)
        repository.refs[f"refs/pr/{requests + 1}" if is_pr else revision] = oid
        return oid
