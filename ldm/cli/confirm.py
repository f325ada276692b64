"""A question on the terminal before something is sent or started."""

import typer

from ldm.errors import UserError


def confirm(question: str, *, verb: str, done: str) -> None:
    """Continue only after a yes.

    Args:
        verb, done: what would happen and what then did not, such as "send" and "sent".

    Raises:
        UserError: nobody answered.
        typer.Exit: the answer was no.
    """
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        typer.echo(err=True)  # the end of the question's line
        what = f"nothing was {done}, because nobody answered"
        raise UserError(what, f"add --yes to {verb} without asking") from None
    if not agreed:
        typer.echo(f"nothing was {done}", err=True)
        raise typer.Exit(1)
