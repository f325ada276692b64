"""A process with the models, so that a crash, or the kernel when memory is short, ends it and not the server.

Messages are pairs of a kind and a value. To the process: `setup`, `make` and `stop`. From it: `models`, `progress`,
`image` and `warning`, and at the end of a batch `made`, `stopped`, `refused` or `fault`.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError, warn
from ldm.web.endings import Cancelled, InternalError, ProcessEnded

if TYPE_CHECKING:
    from ldm.web.image_maker import BatchOrder, MakerSetup, OnProgress
    from ldm.web.queue import ServedImage
    from ldm.web.served_model import ServedModel

STOP_SEC = 5.0
"""The time for an orderly end."""

Message = tuple[str, Any]


class ModelProcess:
    """A process that loads models and makes images; it is started again if it has ended.

    It is started at once, so that it imports its libraries while the caller does the same. It is no fork of the caller:
    CUDA and threads do not survive that.
    """

    def __init__(self) -> None:
        self._setup: MakerSetup | None = None
        self._start()

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ldm.web.make_images", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal does not reach it
                env=_environment(),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def load(self, setup: "MakerSetup") -> "list[ServedModel]":
        """Load the models; returns what clients are told of them.

        Raises:
            UserError: a model cannot be used, or loading it ended the process.
        """
        self._setup = setup
        try:
            return self._set_up(describes=True)
        except ProcessEnded as end:
            what = f"the process that loads the models {end.how}"
            raise UserError(what, "if memory ran out, use --low-memory or a smaller model") from None

    def _set_up(self, *, describes: bool) -> "list[ServedModel]":
        self._send("setup", (self._setup, describes))
        (found,) = (value for kind, value in self._messages("models") if kind == "models")
        models: list[ServedModel] = found
        return models

    def make(self, order: "BatchOrder", on_progress: "OnProgress") -> "Iterator[ServedImage]":
        """The images of a batch; see `Maker`."""
        if not self.is_alive:
            self._start_again()
        try:
            self._send("make", order)
            for kind, value in self._messages("made"):
                if kind == "progress":
                    self._pass_on(value, on_progress)
                elif kind == "image":
                    yield value
        except ProcessEnded:
            self._close()
            raise

    def _start_again(self) -> None:
        """After the last batch ended it, or while there was nothing to do."""
        self._close()
        self._start()
        try:
            self._set_up(describes=False)
        except BaseException:
            self._close()
            raise

    def _pass_on(self, progress: Any, on_progress: "OnProgress") -> None:
        """Report progress; if that cancels the job, wait until the process has stopped, too."""
        try:
            on_progress(*progress)
        except Cancelled:
            self._send("stop", None)
            for _ in self._messages("made"):
                pass
            raise

    def _messages(self, last: str) -> Iterator[Message]:
        """What the process says, up to a message of the kind `last`; its warnings are issued here.

        Raises:
            UserError, Cancelled, ProcessEnded: how it ended otherwise.
        """
        kind = ""
        while kind != last:
            kind, value = self._receive()
            if kind == "warning":
                warn(value)
            elif kind == "refused":
                raise UserError(*value)
            elif kind == "fault":
                raise InternalError(*value)
            elif kind == "stopped":
                raise Cancelled
            else:
                yield kind, value

    def _send(self, kind: str, value: Any) -> None:
        try:
            self._connection.send((kind, value))
        except OSError:
            raise ProcessEnded(self._how_it_ended()) from None

    def _receive(self) -> Message:
        try:
            message: Message = self._connection.recv()
        except (EOFError, OSError):
            raise ProcessEnded(self._how_it_ended()) from None
        return message

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(STOP_SEC)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SEC)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._close()

    def _close(self) -> None:
        self._connection.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def _environment() -> dict[str, str]:
    """With this package in the path, and not what happens to be in the working directory."""
    home = str(Path(__file__).resolve().parents[2])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
