"""Errors as JSON, each of the shape that the clients of its interface expect."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from ldm.errors import UserError
from ldm.web.endings import InternalError
from ldm.web.queue import NotFound, QueueFull
from ldm.web.watched_run import Busy

A1111 = "/sdapi/"
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


def status_of(error: UserError) -> int:
    """The HTTP status for an error."""
    kinds = ((NotFound, 404), (Busy, 409), (QueueFull, 429), (InternalError, 500))
    return next((status for kind, status in kinds if isinstance(error, kind)), 400)


def error_body(path: str, status: int, message: str, field: str | None = None) -> dict[str, Any]:
    """The body of an error: as A1111 has it below `/sdapi/`, else as OpenAI has it.

    Args:
        message: one line that names the field and what to do.
        field: the field that is wrong, if it is a single one.
    """
    kind = _TYPES.get(status, "invalid_request_error")
    if path.startswith(A1111):
        return {"error": kind, "detail": message, "body": "", "errors": message}
    return {"error": {"message": message, "type": kind, "param": field, "code": None}}


def error_response(
    path: str,
    status: int,
    message: str,
    *,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error as a response."""
    return JSONResponse(error_body(path, status, message, field), status, headers)


def failed(path: str, error: UserError) -> Response:
    """A mistake of the client, or of the program, as a response."""
    message = " ".join(str(error).split("\n"))
    headers = {"retry-after": "5"} if isinstance(error, QueueFull) else None
    first = error.what.split(" ")[0]
    field = first if first.replace("_", "").isalnum() else None
    return error_response(path, status_of(error), message, field=field, headers=headers)
