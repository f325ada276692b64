"""A training that the page started: a process of its own, whose last lines of output are kept."""

import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice

LOG_LINES = 200
LINE_BYTES = 4000
INTERRUPTED = (130, 143)
"""Exit codes of a training that was stopped by SIGINT or SIGTERM, having saved."""


class OutputLog:
    """The last lines that the trainings of a run have written."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self._num_lines = 0
        self._lock = threading.Lock()

    def append(self, line: str) -> None:
        """Add a line; the oldest is dropped."""
        with self._lock:
            self._lines.append(line)
            self._num_lines += 1

    def after(self, number: int) -> tuple[int, list[str]]:
        """How many lines there were in all, and those after the first `number` that are kept."""
        with self._lock:
            first_kept = self._num_lines - len(self._lines)
            return self._num_lines, list(islice(self._lines, max(0, number - first_kept), None))


class Training:
    """A running `ldm train`.

    It has its own session, so that Ctrl-C in the server's terminal reaches the server alone, which then passes the
    signal on once: a second signal would end a training without saving.

    Args:
        log: takes its output.

    Attributes:
        is_stopping: whether it was asked to stop.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None, log: OutputLog) -> None:
        self.is_stopping = False
        self.log = log
        self._process = subprocess.Popen(
            command,
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            while line := output.readline(LINE_BYTES):
                self.log.append(line.decode("utf-8", "replace").rstrip().rpartition("\r")[2])

    @property
    def is_running(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it is running; 128 + n if signal n ended it."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    @property
    def has_failed(self) -> bool:
        """Whether it ended in another way than by finishing or being stopped."""
        return self.exit_code not in (None, 0, *INTERRUPTED)

    def stop(self) -> None:
        """Send SIGTERM, upon which it saves and ends; once only."""
        if not self.is_stopping:
            self.is_stopping = True
            self._process.terminate()

    def wait(self) -> None:
        """Wait until it has ended and its output is read."""
        self._process.wait()
        self._reader.join(5)  # a grandchild that outlives it may keep the pipe open
