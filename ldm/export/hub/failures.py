"""Failed requests to the Hub: repeated if that can help, otherwise reported in one line without secrets."""

import json
import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ldm.errors import UserError
from ldm.io.redaction import without_secrets
from ldm.models.loading.hub_answers import HINT, is_from_the_library, reason_of

T = TypeVar("T")
Say = Callable[[str], None]

HTTP_ERROR: type[Exception] = next(c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")
"""The error class of the HTTP library below huggingface_hub, which is httpx in 1.x and httpx2 in 2.x."""

TRANSIENT = (408, 429, 500, 502, 503, 504)
"""Status codes that may be gone a moment later."""

WAITS_SEC = (1.0, 2.0, 4.0, 8.0)
LONGEST_WAIT_SEC = 300.0

REFUSALS = {
    401: (
        "the Hub does not accept the token",
        "log in with `hf auth login`, or set HF_TOKEN to a token with write access",
    ),
    403: (
        "the token has no permission for this on {repo}",
        "use a token with write access there, or --create-pr",
    ),
    404: (
        "the Hub has no {repo}, or no such revision of it",
        "check the names; `hf repos branch create` creates a branch",
    ),
    409: ("{repo} was changed at the same time", "push again"),
    412: ("{repo} was changed at the same time", "push again"),
    413: ("a file or the request is too large for the Hub", "export again with a smaller --max-shard-size"),
    429: (
        "the Hub limits the rate of requests",
        "push again later; files that have arrived are not sent twice",
    ),
}
UNAVAILABLE = ("the Hub is unavailable", "push again later; files that have arrived are not sent twice")
SIGNED = re.compile(r"(?<=\?)\S+|(?i:bearer) \S+")
"""The signature in a URL, and the token in a request's header."""


class Failure(NamedTuple):
    """A request that failed.

    Attributes:
        status: the response's status code; None if there was no response.
        path: the path of the URL.
        message: the Hub's own message in one line, or the name of the error class.
        retry_after_sec: how long the Hub asks us to wait, if it does.
    """

    status: int | None
    path: str
    message: str
    retry_after_sec: float | None = None


def failure_of(error: BaseException | None) -> Failure | None:
    """The failed request behind an error, which the library may have wrapped; None for other errors."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            wait = error.response.headers.get("Retry-After", "")
            message = (error.server_message or "").strip().split("\n")[0][:200]
            path = urlsplit(str(error.response.url)).path
            return Failure(error.response.status_code, path, message, float(wait) if wait.isdigit() else None)
        if isinstance(error, HTTP_ERROR):
            return Failure(None, _path_of(error), type(error).__name__)
        error = error.__cause__
    return None


def _path_of(error: Any) -> str:
    """The path of the URL that an HTTP error is about; empty if the library did not record the request."""
    try:
        return urlsplit(str(error.request.url)).path
    except RuntimeError:  # as httpx documents it
        return ""


def with_retries(call: Callable[[], T], say: Say, *, may_repeat: Callable[[Failure], bool]) -> T:
    """The result of `call`, which is repeated after transient failures.

    The library itself repeats the requests that send files. We repeat the others: creating, committing, querying.

    Args:
        say: told about each wait.
        may_repeat: whether it is safe to send a failed request again.
    """
    for wait in (*WAITS_SEC, None):
        try:
            return call()
        except Exception as error:
            failure = failure_of(error)
            if wait is None or not failure or not _is_transient(failure) or not may_repeat(failure):
                raise
            wait = max(wait, failure.retry_after_sec or 0.0)
            if wait > LONGEST_WAIT_SEC:
                raise
            say(f"the Hub answers {failure.status or failure.message}; trying again in {wait:g} s")
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _is_transient(failure: Failure) -> bool:
    """Whether a repetition may help, and the library has not tried that already."""
    repeated = "/api/" not in failure.path or "/preupload/" in failure.path or "/tree/" in failure.path
    return not repeated and (failure.status is None or failure.status in TRANSIENT)


@contextmanager
def reported_in_one_line(repo_id: str, token: str, say: Say) -> Iterator[None]:
    """Turn the library's errors into a UserError, and its warnings into calls of `say`, both without the token.

    Raises:
        UserError: a request to the Hub failed.
    """
    with _messages_to(lambda message: say(redact(message, token))):
        try:
            yield
        except OfflineModeIsEnabled:
            raise UserError("HF_HUB_OFFLINE forbids access to the Hub", "unset it and push again") from None
        except UserError:
            raise
        except Exception as error:
            explained = _explain(error, repo_id, token)
            if explained is None:
                raise
            # the library's message contains signed URLs, which a traceback would show
            raise explained from None


def _explain(error: Exception, repo_id: str, token: str) -> UserError | None:
    failure = failure_of(error)
    if failure is None:
        output = redact(str(error), token).strip().split("\n")
        is_garbled = isinstance(error, json.JSONDecodeError | UnicodeError)
        if isinstance(error, ValueError) and not is_garbled:  # the library refuses, for example front matter
            return UserError(f"the Hub refuses: {' '.join(output)[:300]}")
        if not is_from_the_library(error):
            return None
        return UserError(f"the push failed: {redact(reason_of(error), token)}", HINT)
    if failure.status is None:
        return UserError(
            f"the Hub cannot be reached ({failure.message})",
            "check the network; files that have arrived are not sent twice",
        )
    unknown = UNAVAILABLE if failure.status >= 500 else ("the Hub refuses", "fix the cause and push again")
    what, hint = REFUSALS.get(failure.status, unknown)
    message = f": {redact(failure.message, token)}" if failure.message else ""
    return UserError(f"{what.format(repo=repo_id)} ({failure.status}{message})", hint)


def redact(text: str, token: str) -> str:
    """A message without the token, other tokens, and the signatures of URLs."""
    return SIGNED.sub("[hidden]", without_secrets(text, [token], mark="[hidden]"))


@contextmanager
def _messages_to(say: Say) -> Iterator[None]:
    """Pass on the library's log messages and warnings; show its progress bars on a terminal only."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, but not in __all__
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    logger, silent = logging.getLogger("huggingface_hub"), are_progress_bars_disabled()
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_Forwarder(say)], False
    if not silent and not sys.stderr.isatty():
        disable_progress_bars()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        if not silent:
            enable_progress_bars()
    for warning in caught:
        say(" ".join(str(warning.message).split()))


class _Forwarder(logging.Handler):
    """Passes on the library's warnings, one line each and without URLs."""

    def __init__(self, say: Say) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(" ".join(record.getMessage().partition(" while requesting")[0].split()))
