"""`ldm push`: sends a model's folder to the Hugging Face Hub."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm.cli.confirm import confirm
from ldm.cli.printer import Printer, reporting
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.export.hub.outgoing import Outgoing

Public = Annotated[
    bool,
    typer.Option(
        "--public",
        help="Publish. Without it a new repository is private, and an existing public one is refused.",
    ),
]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Open a pull request on an existing repository.")]
Revision = Annotated[
    str | None,
    typer.Option(metavar="BRANCH", help="An existing branch to send it to.  [default: main]"),
]
Yes = Annotated[bool, typer.Option("--yes", help="Send without asking.")]


@reporting
def push(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A model's folder, as `ldm export` writes it.")
    ],
    repo_id: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository on the Hub.")],
    public: Public = False,
    create_pr: CreatePr = False,
    revision: Revision = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files with their sizes, and send nothing.")
    ] = False,
    yes: Yes = False,
    *,
    printer: Printer,
) -> None:
    """Send a model to the Hugging Face Hub, and check that it arrived intact.

    Only files with known names are sent, and only if they contain no tokens, absolute paths, e-mail addresses or
    locations, and no name of this user or this computer where a program wrote it. The token comes from
    `hf auth login` or HF_TOKEN. The folder is not changed.
    """
    from ldm.export.hub.upload import check_repo_id

    check_repo_id(repo_id)
    if dry_run:
        return _show(folder, repo_id, printer)
    printer.result(
        send(folder, repo_id, printer, public=public, create_pr=create_pr, revision=revision, yes=yes)
    )


def send(
    folder: Path,
    repo_id: str,
    printer: Printer,
    *,
    public: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    yes: bool = False,
) -> dict[str, Any]:
    """Send a folder, after asking unless `yes`, and print the result; returns the facts for JSON.

    Raises:
        UserError: the folder must not be sent, or the Hub refuses it.
        typer.Exit: the answer was no.
    """
    from ldm.export.hub.upload import check_outgoing, push_folder

    outgoing = check_outgoing(folder, repo_id=repo_id)
    if not yes:
        kind = "a pull request" if create_pr else "public" if public else "private"
        confirm(f"Send {_amount(outgoing)} to {repo_id} ({kind})?", verb="send", done="sent")
    report = push_folder(
        folder,
        repo_id,
        public=public,
        create_pr=create_pr,
        revision=revision,
        say=lambda line: printer.note(f"note: {line}"),
    )
    if public and report.is_private:
        printer.note(f"note: {repo_id} was already private and stays private")
    if others := [name for name in report.others if name != ".gitattributes"]:
        printer.note(f"note: {repo_id} also has older files: {', '.join(others)}")
    printer.lines(f"{report.url}: {_amount(outgoing)}, arrived intact")
    return {
        "url": report.url,
        "revision": report.revision,
        "is_private": report.is_private,
        "files": _sizes(outgoing),
        "older_files": others,
    }


def _show(folder: Path, repo_id: str, printer: Printer) -> None:
    """List the files that would be sent, and those that would not.

    Raises:
        UserError: a file contains something private.
    """
    from ldm.export.hub.leaks import scan
    from ldm.export.hub.outgoing import list_outgoing
    from ldm.io.redaction import private_names

    outgoing = list_outgoing(folder)
    printer.lines(
        *(f"{_size(file.size_bytes):>10}  {file.name}" for file in outgoing.files),
        *(f"{'left out':>10}  {name}" for name in outgoing.left_out),
        f"{_size(outgoing.size_bytes):>10}  in {len(outgoing.files)} files; nothing was sent",
    )
    leaks = scan(outgoing.files, names=private_names(repo_id))
    printer.result(
        {
            "files": _sizes(outgoing),
            "left_out": list(outgoing.left_out),
            "size_bytes": outgoing.size_bytes,
            "private": [asdict(leak) for leak in leaks],
        }
    )
    for leak in leaks:
        typer.echo(f"private: {leak}", err=True)  # a part of the error
    if leaks:
        raise UserError(f"{len(leaks)} private things were found", "remove them, or export the model again")


def _sizes(outgoing: "Outgoing") -> list[dict[str, Any]]:
    return [{"name": file.name, "size_bytes": file.size_bytes} for file in outgoing.files]


def _amount(outgoing: "Outgoing") -> str:
    return f"{len(outgoing.files)} files, {_size(outgoing.size_bytes)}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"
