"""The other end of `ldm.web.model_process`: `python -m ldm.web.make_images DESCRIPTOR`."""

import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError
from ldm.io.collector import collector_paused
from ldm.io.messages import own_warnings
from ldm.web.endings import Cancelled

if TYPE_CHECKING:
    from ldm.web.image_maker import ImageMaker


class Teller:
    """Sends what is made to the server, and hears from it whether to stop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def tell(self, kind: str, value: Any = None) -> None:
        """Send a message."""
        self._connection.send((kind, value))

    def progress(self, done: int, total: int, previews: tuple[bytes, ...] | None) -> None:
        """Report a step.

        Raises:
            Cancelled: the server asks to stop.
            EOFError: the server has gone.
        """
        self.tell("progress", (done, total, previews))
        if self._connection.poll() and self._connection.recv()[0] == "stop":
            raise Cancelled

    def warn(self, text: str) -> None:
        self.tell("warning", text)


def serve_orders(connection: Connection) -> None:
    """Do what the server asks, until it has gone."""
    with collector_paused():
        from ldm.web.image_maker import ImageMaker
        from ldm.web.worker import fault

    teller, maker = Teller(connection), None
    while True:
        kind, value = connection.recv()
        try:
            with own_warnings(teller.warn):
                if kind == "setup":
                    setup, describes = value
                    maker = setup.maker()
                    teller.tell("models", maker.models.describe() if describes else [])
                elif kind == "make":
                    assert isinstance(maker, ImageMaker)
                    _make(maker, value, teller)
        except Cancelled:
            teller.tell("stopped")
        except UserError as error:
            teller.tell("refused", (error.what, error.hint))
        except (EOFError, ConnectionError):
            raise
        except Exception as error:
            found = fault(error)
            teller.tell("fault", (found.what, found.hint))


def _make(maker: "ImageMaker", order: Any, teller: Teller) -> None:
    for image in maker.make(order, teller.progress):
        teller.tell("image", image)
    teller.tell("made")


def main(descriptor: int) -> None:
    """Run until the server has gone, and end without tearing down the libraries, which takes long."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an orderly end: nothing is left half-written
    try:
        serve_orders(Connection(descriptor))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
