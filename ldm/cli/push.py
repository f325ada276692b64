"""`ldm push`: a model's folder to the Hugging Face Hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.export.hub.leaks import Leak
    from ldm.export.hub.outgoing import Outgoing

Public = Annotated[
    bool,
    typer.Option(
        "--public", help="Publish: without it the repository is made private, and a public one is refused."
    ),
]
CreatePr = Annotated[
    bool, typer.Option("--create-pr", help="Open a pull request on a repository that is there.")
]
Revision = Annotated[
    str | None,
    typer.Option(metavar="BRANCH", help="Where to, such as a branch that is there.  [default: main]"),
]
Yes = Annotated[bool, typer.Option("--yes", help="Send without asking.")]


def push(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A model's folder, as `ldm export` writes it.")
    ],
    repo_id: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository on the Hub.")],
    public: Public = False,
    create_pr: CreatePr = False,
    revision: Revision = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be sent, with sizes, and send nothing.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Send a model to the Hugging Face Hub, and check what has arrived.

    Only files of known names are sent, after a look for tokens, absolute paths, e-mail addresses and places inside
    them. The token comes from `hf auth login` or HF_TOKEN. The folder is not changed.
    """
    from ldm.export.hub.upload import check_repo_id

    check_repo_id(repo_id)
    if dry_run:
        return _show(folder)
    send(folder, repo_id, public=public, create_pr=create_pr, revision=revision, yes=yes)


def send(
    folder: Path,
    repo_id: str,
    *,
    public: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    yes: bool = False,
) -> None:
    """Ask unless `yes`, send a folder and say what became of it.

    Raises:
        UserError: nothing may be sent, or the Hub refuses.
        typer.Exit: the answer was no.
    """
    from ldm.export.hub.upload import check_outgoing, push_folder

    outgoing = check_outgoing(folder)
    if not yes:
        kind = "a pull request" if create_pr else "public" if public else "private"
        _ask(f"Send {_amount(outgoing)} to {repo_id} ({kind})?")
    report = push_folder(
        folder,
        repo_id,
        public=public,
        create_pr=create_pr,
        revision=revision,
        say=lambda line: typer.echo(f"note: {line}", err=True),
    )
    if public and report.is_private:
        typer.echo(f"note: {repo_id} was private before and stays so", err=True)
    if others := [name for name in report.others if name != ".gitattributes"]:
        typer.echo(f"note: {repo_id} also holds, from before: {', '.join(others)}", err=True)
    typer.echo(f"{report.url}: {_amount(outgoing)}, arrived whole")


def _ask(question: str) -> None:
    """Go on only after a yes."""
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        typer.echo(err=True)  # the end of the question's line
        raise UserError("nothing was sent, for nobody answered", "add --yes to send without asking") from None
    if not agreed:
        typer.echo("nothing was sent", err=True)
        raise typer.Exit(1)


def _show(folder: Path) -> None:
    """What would be sent and what not.

    Raises:
        UserError: something in it must not leave.
    """
    from ldm.export.hub.leaks import scan
    from ldm.export.hub.outgoing import list_outgoing

    outgoing = list_outgoing(folder)
    for file in outgoing.files:
        typer.echo(f"{_size(file.size_bytes):>10}  {file.name}")
    for name in outgoing.left_out:
        typer.echo(f"{'left out':>10}  {name}")
    typer.echo(f"{_size(outgoing.size_bytes):>10}  in {len(outgoing.files)} files; nothing was sent")
    _tell(scan(outgoing.files))


def _tell(leaks: "list[Leak]") -> None:
    for leak in leaks:
        typer.echo(f"must not leave: {leak}", err=True)
    if leaks:
        raise UserError(f"{len(leaks)} things must not leave", "take them out of the folder")


def _amount(outgoing: "Outgoing") -> str:
    return f"{len(outgoing.files)} files, {_size(outgoing.size_bytes)}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"
