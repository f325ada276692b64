"""What goes wrong between us and the Hub: tried again where that helps, else told in one line without secrets."""

import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ldm.errors import UserError
from ldm.io.redaction import without_secrets

T = TypeVar("T")
Say = Callable[[str], None]

HTTP_ERROR: type[Exception] = next(c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")
"""Of the HTTP library that huggingface_hub stands on: httpx in 1.x, httpx2 in 2.x."""

PASSING = (408, 429, 500, 502, 503, 504)
"""Answers that may be another one a moment later."""

WAITS_SEC = (1.0, 2.0, 4.0, 8.0)
LONGEST_WAIT_SEC = 300.0

REFUSALS = {
    401: (
        "the Hub does not accept the token",
        "log in with `hf auth login`, or set HF_TOKEN to a token that may write",
    ),
    403: ("the token may not do this to {repo}", "use a token with write access there, or --create-pr"),
    404: (
        "the Hub has no {repo}, or not this revision of it",
        "check the names; `hf repos branch create` makes a branch",
    ),
    409: ("{repo} was changed at the same time", "push again"),
    412: ("{repo} was changed at the same time", "push again"),
    413: ("the Hub finds a file or the request too large", "export again with a smaller --max-shard-size"),
    429: ("the Hub asks for a pause", "push again later; what has arrived is not sent twice"),
}
BUSY = ("the Hub is out of order", "push again later; what has arrived is not sent twice")
SIGNED = re.compile(r"(?<=\?)\S+|(?i:bearer) \S+")
"""The part of an address that signs it, and the head of a request."""


class Failure(NamedTuple):
    """A request that failed.

    Attributes:
        status: of the answer, or None when there was none.
        path: of the URL.
        told: what the Hub says of it, one line, or the kind of the error.
        retry_after_sec: how long the Hub asks to wait, where it does.
    """

    status: int | None
    path: str
    told: str
    retry_after_sec: float | None = None


def failure_of(error: BaseException | None) -> Failure | None:
    """The failed request behind an error, which the library may have wrapped; None where it is another error."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            wait = error.response.headers.get("Retry-After", "")
            told = (error.server_message or "").strip().split("\n")[0][:200]
            path = urlsplit(str(error.response.url)).path
            return Failure(error.response.status_code, path, told, float(wait) if wait.isdigit() else None)
        if isinstance(error, HTTP_ERROR):
            request = getattr(error, "_request", None)
            return Failure(None, urlsplit(str(request.url)).path if request else "", type(error).__name__)
        error = error.__cause__
    return None


def with_retries(call: Callable[[], T], say: Say, *, may_repeat: Callable[[Failure], bool]) -> T:
    """What `call` gives, which is called again after failures that pass.

    The library itself tries again what sends files; for the rest (creating, committing, asking) we do.

    Args:
        may_repeat: whether a failed request may be sent once more.
    """
    for wait in (*WAITS_SEC, None):
        try:
            return call()
        except Exception as error:
            failure = failure_of(error)
            if wait is None or not failure or not _passes(failure) or not may_repeat(failure):
                raise
            wait = max(wait, failure.retry_after_sec or 0.0)
            if wait > LONGEST_WAIT_SEC:
                raise
            say(f"the Hub answers {failure.status or failure.told}; trying again in {wait:g} s")
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _passes(failure: Failure) -> bool:
    tried_already = "/api/" not in failure.path or "/preupload/" in failure.path or "/tree/" in failure.path
    return not tried_already and (failure.status is None or failure.status in PASSING)


@contextmanager
def told_in_one_line(repo_id: str, token: str, say: Say) -> Iterator[None]:
    """Turn the library's errors into a UserError, and its warnings into calls of `say`; both without the token.

    Raises:
        UserError: in place of everything by which a request to the Hub can fail.
    """
    with _messages_to(lambda message: say(redact(message, token))):
        try:
            yield
        except OfflineModeIsEnabled:
            raise UserError(
                "the Hub is switched off here by HF_HUB_OFFLINE", "unset it and push again"
            ) from None
        except UserError:
            raise
        except Exception as error:
            explained = _explain(error, repo_id, token)
            if explained is None:
                raise
            # what the library says holds signed addresses; a traceback would show it
            raise explained from None


def _explain(error: Exception, repo_id: str, token: str) -> UserError | None:
    failure = failure_of(error)
    if failure is None:
        output = redact(str(error), token).strip().split("\n")
        # the library's own refusals, such as front matter that is not valid
        return (
            UserError(f"the Hub refuses: {' '.join(output)[:300]}") if isinstance(error, ValueError) else None
        )
    if failure.status is None:
        return UserError(
            f"the Hub cannot be reached ({failure.told})",
            "check the network; what has arrived is not sent twice",
        )
    unknown = BUSY if failure.status >= 500 else ("the Hub refuses", "mend what it names and push again")
    what, hint = REFUSALS.get(failure.status, unknown)
    told = f": {redact(failure.told, token)}" if failure.told else ""
    return UserError(f"{what.format(repo=repo_id)} ({failure.status}{told})", hint)


def redact(text: str, token: str) -> str:
    """A message without the token, other tokens, and the signatures of addresses."""
    return SIGNED.sub("[hidden]", without_secrets(text, [token], mark="[hidden]"))


@contextmanager
def _messages_to(say: Say) -> Iterator[None]:
    """Hand on what the library logs and warns of; its bars show on a terminal only."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # which it documents and does not list
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    logger, silent = logging.getLogger("huggingface_hub"), are_progress_bars_disabled()
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_Teller(say)], False
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


class _Teller(logging.Handler):
    """Says warnings of the library, each in a line and without addresses."""

    def __init__(self, say: Say) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(" ".join(record.getMessage().partition(" while requesting")[0].split()))
