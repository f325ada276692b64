"""Sending a model's folder to the Hub: checked for private data, in one commit, and compared on arrival."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ldm.errors import UserError
from ldm.export.hub.failures import Failure, Say, reported_in_one_line, with_retries
from ldm.export.hub.leaks import scan
from ldm.export.hub.outgoing import Outgoing, OutgoingFile, list_outgoing
from ldm.export.model_files import REPORT
from ldm.io.files import MANIFEST
from ldm.io.json_files import read_object
from ldm.io.redaction import private_names
from ldm.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

MESSAGE = "Upload a model with OpenLDM"
_CHUNK_BYTES = 2**20
_MOST_NAMED = 3


@dataclass(frozen=True)
class PushReport:
    """What `push_folder` did.

    Attributes:
        url: of the commit or the pull request.
        revision: the commit's hash, or the name of the pull request, such as "refs/pr/1".
        is_private: whether the repository is hidden from others.
        files: the folder's files in that revision, compared by hash.
        others: names of further files in it: older ones, or those that the Hub adds.
    """

    repo_id: str
    url: str
    revision: str
    is_private: bool
    files: tuple[OutgoingFile, ...]
    others: tuple[str, ...]


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    public: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    say: Say = lambda _: None,
) -> PushReport:
    """Send a model's folder to the Hub in one commit. The folder is not changed.

    The token comes from HF_TOKEN or `hf auth login`. If any file contains something private, nothing is sent.

    Args:
        repo_id: "user/name"; a private repository is created if it does not exist.
        public: publish; without it a public repository is refused.
        create_pr: open a pull request instead of committing; the repository must exist.
        revision: an existing branch or "refs/pr/1"; default: the main branch.
        say: told about waits and the Hub's messages, one line each.

    Raises:
        UserError: the folder must not be sent, the Hub refuses it, or the files arrived changed.
    """
    check_repo_id(repo_id)
    token = _token()
    outgoing = check_outgoing(folder, secrets=[token], repo_id=repo_id)
    hashes = {file.name: _hashes(file.path) for file in outgoing.files}
    _check_against_report(folder, hashes)
    with reported_in_one_line(repo_id, token, say):
        push = _Push(HfApi(token=token, library_name="open-ldm", library_version=__version__), repo_id, say)
        is_private = push.find_repository(public=public, may_create=not create_pr)
        commit = push.commit(outgoing.files, MESSAGE, create_pr=create_pr, revision=revision)
        arrived = (commit.pr_revision if create_pr else None) or commit.oid
        others = push.compare(hashes, arrived)
    url = str(commit.pr_url or commit.commit_url)
    return PushReport(repo_id, url, arrived, is_private, outgoing.files, others)


def check_repo_id(repo_id: str) -> None:
    """Refuse an invalid repository name.

    Raises:
        UserError: it is not `user/name`, or has characters that the Hub does not accept.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is not a valid repository name ({error})", "write USER/NAME") from None
    if repo_id.count("/") != 1:
        raise UserError(f"{repo_id!r} does not name the repository's owner", "write USER/NAME")


def check_outgoing(folder: Path, *, secrets: Sequence[str] = (), repo_id: str | None = None) -> Outgoing:
    """The files of a folder that will be sent, after a check for private data.

    Args:
        secrets: further texts to search for.
        repo_id: where the folder is sent; the words in it are not private.

    Raises:
        UserError: the folder is not a model that can be sent, or contains something private.
    """
    outgoing = list_outgoing(folder)
    if leaks := scan(outgoing.files, secrets, private_names(repo_id)):
        more = f", and {len(leaks) - _MOST_NAMED} more" if len(leaks) > _MOST_NAMED else ""
        raise UserError(
            f"nothing is sent, because of private data: {'; '.join(map(str, leaks[:_MOST_NAMED]))}{more}",
            "remove it, or export the model again with `ldm export`; `ldm push --dry-run` lists everything",
        )
    return outgoing


def _token() -> str:
    token = get_token()
    if not token:
        raise UserError("there is no Hub token", "log in with `hf auth login`, or set HF_TOKEN")
    return token


@dataclass(frozen=True)
class _Push:
    """One push: the Hub's interface, the repository, and where messages go."""

    api: HfApi
    repo_id: str
    say: Say

    def find_repository(self, *, public: bool, may_create: bool) -> bool:
        """Make sure that the repository exists, and is public only if asked for; returns whether it is private.

        Raises:
            UserError: it is public, but publishing was not asked for; or it does not exist and must not be created.
        """
        is_private = self._is_private()
        if is_private is None and may_create:
            self._create(private=not public)
            is_private = self._is_private()
        if is_private is None:
            raise UserError(f"the Hub has no {self.repo_id} that this token can access", "check the name")
        if not is_private and not public:
            raise UserError(
                f"{self.repo_id} is public", "add --public to publish there, or choose another name"
            )
        return is_private

    def _is_private(self) -> bool | None:
        try:
            info = with_retries(lambda: self.api.repo_info(self.repo_id), self.say, may_repeat=lambda _: True)
        except RepositoryNotFoundError as error:
            if error.response.status_code != 404:
                raise
            return None
        return bool(info.private)

    def _create(self, *, private: bool) -> None:
        """Create the repository; one that an earlier attempt created, whose response was lost, is fine."""
        with_retries(
            lambda: self.api.create_repo(self.repo_id, private=private, exist_ok=True),
            self.say,
            may_repeat=lambda _: True,
        )

    def commit(
        self, files: Sequence[OutgoingFile], message: str, *, create_pr: bool, revision: str | None
    ) -> "CommitInfo":
        """One commit of all files except those that the repository already has.

        A second attempt asks again which files the repository has, so a commit whose response was lost is not made
        twice. A pull request could be: it is requested again only if the Hub certainly did nothing.
        """

        def send() -> "CommitInfo":
            adds = [CommitOperationAdd(file.name, file.path) for file in files]
            return self.api.create_commit(
                self.repo_id, adds, commit_message=message, create_pr=create_pr, revision=revision
            )

        def may_repeat(failure: Failure) -> bool:
            return not (create_pr and "/commit/" in failure.path) or failure.status == 429

        return with_retries(send, self.say, may_repeat=may_repeat)

    def compare(self, hashes: Mapping[str, tuple[str, str]], revision: str) -> tuple[str, ...]:
        """Compare the Hub's listing with the files sent; returns the names of further files in the listing.

        Raises:
            UserError: a file is missing or differs.
        """
        tree = self.api.list_repo_tree(self.repo_id, recursive=True, revision=revision)
        there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        wrong = [name for name, known in hashes.items() if name not in there or not _same(there[name], known)]
        if wrong:
            more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
            raise UserError(
                f"{self.repo_id} differs from the files sent: {', '.join(wrong[:_MOST_NAMED])}{more}",
                "push again before you use it",
            )
        return tuple(sorted(there.keys() - hashes.keys()))


def _same(entry: RepoFile, known: tuple[str, str]) -> bool:
    """The Hub lists large files with their SHA-256, and small ones with git's hash."""
    sha256, git_sha1 = known
    return entry.lfs.sha256 == sha256 if entry.lfs else entry.blob_id == git_sha1


def _hashes(path: Path) -> tuple[str, str]:
    """A file's SHA-256, and the SHA-1 of git's blob, in one pass."""
    sha256, git_sha1 = (
        hashlib.sha256(),
        hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False),
    )
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
            git_sha1.update(chunk)
    return sha256.hexdigest(), git_sha1.hexdigest()


def _check_against_report(folder: Path, hashes: Mapping[str, tuple[str, str]]) -> None:
    """Check that the files sent are those that `ldm export` verified.

    Raises:
        UserError: a file has changed since, or is missing.
    """
    verified = read_object(folder / REPORT).get("files", {}) if REPORT in hashes else {}
    for name, entry in verified.items():
        if name == MANIFEST:  # some exports list the index of the saved model, which is not sent
            continue
        if name not in hashes:
            raise UserError(
                f"{folder / name} is listed in {REPORT} but cannot be sent", "export the model again"
            )
        if hashes[name][0] != entry.get("sha256"):
            raise UserError(
                f"{folder / name} has changed since it was verified ({REPORT})",
                "export again, or run ldm verify",
            )
