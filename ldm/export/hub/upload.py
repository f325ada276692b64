"""A model's folder sent to the Hub: what may leave, looked through, in one commit, compared with what arrived."""

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
from ldm.export.hub.failures import Failure, Say, told_in_one_line, with_retries
from ldm.export.hub.leaks import scan
from ldm.export.hub.outgoing import Outgoing, OutgoingFile, list_outgoing
from ldm.export.model_files import REPORT
from ldm.models.loading.folder import read_object
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
        url: of the commit, or of the pull request.
        revision: the commit's hash; of a pull request its name, such as "refs/pr/1".
        is_private: whether others see the repository.
        files: what the revision now holds of the folder, compared by hash.
        others: names of what else it holds: left from before, or put there by the Hub.
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
    """Send a model's folder to the Hub in one commit; the folder itself is only read.

    The token comes from HF_TOKEN or the Hub's own login. Nothing is sent when anything of the folder should not leave.

    Args:
        repo_id: "user/name"; a private repository is made where there is none.
        public: publish; without it a public repository is refused.
        create_pr: open a pull request in place of a commit; the repository must be there.
        revision: a branch or "refs/pr/1"; it must be there. By default the main branch.
        say: told of pauses and of what the Hub remarks, a line each.

    Raises:
        UserError: nothing may be sent, or the Hub refuses, or what has arrived is not what was sent.
    """
    check_repo_id(repo_id)
    token = _token()
    outgoing = check_outgoing(folder, secrets=[token])
    hashes = {file.name: _hashes(file.path) for file in outgoing.files}
    _check_against_report(folder, hashes)
    with told_in_one_line(repo_id, token, say):
        push = _Push(HfApi(token=token, library_name="open-ldm", library_version=__version__), repo_id, say)
        is_private = push.find_repository(public=public, may_create=not create_pr)
        commit = push.commit(outgoing.files, MESSAGE, create_pr=create_pr, revision=revision)
        arrived = (commit.pr_revision if create_pr else None) or commit.oid
        others = push.compare(hashes, arrived)
    url = str(commit.pr_url or commit.commit_url)
    return PushReport(repo_id, url, arrived, is_private, outgoing.files, others)


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        UserError: it is not `user/name`, or has letters that the Hub does not take.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is no repository's name ({error})", "write USER/NAME") from None
    if repo_id.count("/") != 1:
        raise UserError(f"{repo_id!r} does not say whose the repository is", "write USER/NAME")


def check_outgoing(folder: Path, *, secrets: Sequence[str] = ()) -> Outgoing:
    """What of a folder is sent, looked through.

    Raises:
        UserError: it is no model that can be sent, or something in it must not leave.
    """
    outgoing = list_outgoing(folder)
    if leaks := scan(outgoing.files, secrets):
        more = f", and {len(leaks) - _MOST_NAMED} more" if len(leaks) > _MOST_NAMED else ""
        raise UserError(
            f"nothing is sent, for this must not leave: {'; '.join(map(str, leaks[:_MOST_NAMED]))}{more}",
            "take it out; `ldm push --dry-run` names it all",
        )
    return outgoing


def _token() -> str:
    token = get_token()
    if not token:
        raise UserError("there is no Hub token", "log in with `hf auth login`, or set HF_TOKEN")
    return token


@dataclass(frozen=True)
class _Push:
    """One push: whom to ask, where to, and who is told."""

    api: HfApi
    repo_id: str
    say: Say

    def find_repository(self, *, public: bool, may_create: bool) -> bool:
        """Make sure that the repository is there, and no more visible than was asked for; gives whether it is private.

        Raises:
            UserError: it is there and public, and publishing was not asked for.
        """
        is_private = self._is_private()
        if is_private is None and may_create:
            self._create(private=not public)
            is_private = self._is_private()
        if is_private is None:
            raise UserError(f"the Hub has no {self.repo_id} that this token may see", "check the name")
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
        """Made meanwhile, by whom ever, or by a try whose answer was lost, is as good."""
        with_retries(
            lambda: self.api.create_repo(self.repo_id, private=private, exist_ok=True),
            self.say,
            may_repeat=lambda _: True,
        )

    def commit(
        self, files: Sequence[OutgoingFile], message: str, *, create_pr: bool, revision: str | None
    ) -> "CommitInfo":
        """One commit of all the files, those that are there already left out.

        A second try asks again what is there, so a commit whose answer was lost is not made twice. A pull request
        could be: it is asked for again only where the Hub surely did nothing.
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
        """Compare what the Hub now lists with what was read here; gives the names of what else it lists.

        Raises:
            UserError: a file is missing or is another one.
        """
        tree = self.api.list_repo_tree(self.repo_id, recursive=True, revision=revision)
        there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        wrong = [name for name, known in hashes.items() if name not in there or not _same(there[name], known)]
        if wrong:
            more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
            raise UserError(
                f"{self.repo_id} does not hold what was sent: {', '.join(wrong[:_MOST_NAMED])}{more}",
                "push again, and do not use it before",
            )
        return tuple(sorted(there.keys() - hashes.keys()))


def _same(entry: RepoFile, known: tuple[str, str]) -> bool:
    """The Hub lists large files by SHA-256, small ones by git's hash."""
    sha256, git_sha1 = known
    return entry.lfs.sha256 == sha256 if entry.lfs else entry.blob_id == git_sha1


def _hashes(path: Path) -> tuple[str, str]:
    """SHA-256, and the SHA-1 that git gives a file of these bytes, read once."""
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
    """What `ldm export` verified must be what is sent.

    Raises:
        UserError: a file has changed since, or is gone.
    """
    verified = read_object(folder / REPORT).get("files", {}) if REPORT in hashes else {}
    for name, entry in verified.items():
        if name not in hashes:
            raise UserError(f"{folder / name} is in {REPORT} and cannot be sent", "export the model again")
        if hashes[name][0] != entry.get("sha256"):
            raise UserError(
                f"{folder / name} is not what {REPORT} says was verified", "export again, or run ldm verify"
            )
