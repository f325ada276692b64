"""Where the server listens, and whom it lets in without a token. Nothing heavy is imported here."""

import socket
from ipaddress import ip_address

from ldm.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Args:
        port: 0 for any that is free.

    Raises:
        UserError: the host is not an address of this machine, or the port is taken or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=128)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot listen on {host}:{port} ({reason})", "give another --port or --host"
        ) from None


def check_token(host: str, token: str, *, public: bool = False) -> None:
    """Refuse to serve other machines without a token, unless `public`, and tokens that are easy to guess.

    Raises:
        UserError: see above.
    """
    if not token:
        if not public and not is_loopback(host):
            what = f"--host {host} lets other machines in"
            raise UserError(what, "add --token random, or a token of your own; --public if anyone may use it")
        return
    if (
        len(token) < 8
        or not token.isascii()
        or not all(letter.isalnum() or letter in "-._~" for letter in token)
    ):
        what = "the token must be at least 8 ASCII letters, digits, or one of - . _ ~"
        raise UserError(what, "--token random makes one")


def is_loopback(host: str) -> bool:
    """Whether an address or a host's name is this machine's own."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in ("localhost", "local")
