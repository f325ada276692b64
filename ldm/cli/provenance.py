"""`ldm provenance`: where images come from, and the identity that signs them."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ldm.cli.printer import Printer, reporting
from ldm.errors import UserError
from ldm.io.messages import say_error, visible

TAMPERED, UNREADABLE = 1, 2


class ShowByDefault(TyperGroup):
    """A group in which `show` may be left out: `ldm provenance FILE` is `ldm provenance show FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the command that was left out."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


provenance_app = typer.Typer(
    cls=ShowByDefault,
    help="Say where images come from; make an identity to sign them with.",
    rich_markup_mode=None,
    no_args_is_help=True,
)


@provenance_app.callback()
def provenance() -> None:
    """Say where images come from: `ldm provenance FILE...`. `ldm provenance init` makes an identity to sign them."""


@provenance_app.command()
@reporting
def show(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Images, of any origin.")],
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A root certificate in PEM whose signers are trusted, besides your own identity. Can be repeated.",
        ),
    ] = None,
    lineage: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Follow the hashes back from the image to its model, its run and its data, as far as they are in this "
            "folder. Can be repeated.",
        ),
    ] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--search",
            help="Look for watermarks of images that were cut or turned, too: some seconds for each image.",
        ),
    ] = False,
    *,
    printer: Printer,
) -> None:
    """Say in a line for each image who signed it, whether it changed since, which model made it, from which images.

    Exits with 0 if every file could be read and agrees with its signature or has none, with 1 if one was changed since
    it was signed, and with 2 if one cannot be read.
    """
    from ldm.provenance.image_report import provenance_of
    from ldm.provenance.signing_identity import read_pem

    roots = [read_pem(path, "root certificate") for path in trust or []]
    found: list[dict[str, Any]] = []
    code = 0
    for path in files:
        try:
            facts = provenance_of(path, roots, lineage or [], search=search)
        except UserError as error:
            say_error(str(error))
            found.append({"path": str(path), "error": str(error)})
            code = UNREADABLE
            continue
        printer.lines(visible(facts.line()))
        found.append(facts.to_json())
        if facts.signature == "tampered":
            code = max(code, TAMPERED)
    printer.result({"files": found})
    if code:
        raise typer.Exit(code)


@provenance_app.command()
@reporting
def init(
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Who signs: your name or that of your organisation, which everyone can read."
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the key and the certificates go.  [default: $LDM_IDENTITY_DIR, else open-ldm/identity in the "
            "user's folder of settings]",
        ),
    ] = None,
    *,
    printer: Printer,
) -> None:
    """Make an identity that `ldm generate --sign` signs images with: a private key and certificates for it.

    Nobody vouches for it. Others see the name as not trusted until they add root.pem, the public part, with --trust.
    """
    from ldm.provenance.signing_identity import CERTIFICATES, KEY, ROOT, identity_folder, make_identity

    folder = folder or identity_folder()
    make_identity(name, folder)
    facts = {each: str(folder / each) for each in (KEY, CERTIFICATES, ROOT)}
    printer.result(
        facts,
        f"{folder / KEY}: the private key; keep it to yourself",
        f"{folder / CERTIFICATES}: the certificate that images carry",
        f"{folder / ROOT}: the root certificate; give it to those who are to trust your signature",
    )
