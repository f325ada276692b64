"""The web application: the routes of all interfaces behind one guard."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ldm.errors import UserError
from ldm.web import a1111, openai_images, own_api, runs_api
from ldm.web.answers import error_response, failed
from ldm.web.guard import Guard
from ldm.web.openapi import document
from ldm.web.own_api import service_of
from ldm.web.runs_api import Runs
from ldm.web.service import Service

PAGE_PATHS = ("/", "/static/{name}", "/login", "/runs")


def make_application(
    service: Service,
    *,
    runs: Runs | None = None,
    token: str = "",
    with_page: bool = True,
    public: bool = False,
) -> Guard:
    """The application with its guard, which serves any number of requests at once.

    Args:
        runs: the training runs that are shown, and started and stopped.
        token: that clients must have; empty for none.
        with_page: serve the page, and not only the interfaces for programs.
        public: let anyone in, also without a token; see `Guard`.
    """
    all_own = (*own_api.ROUTES, *runs_api.ROUTES)
    own = [route for route in all_own if with_page or route.path not in PAGE_PATHS]
    interface = [*own, *openai_images.ROUTES, *a1111.ROUTES]

    async def openapi(request: Request) -> Response:
        """This document."""
        return JSONResponse(documents[0])

    async def health(request: Request) -> Response:
        """Whether the server runs, and how many requests are unfinished."""
        return JSONResponse({"ok": True, "unfinished": service_of(request).queue.num_waiting()})

    routes = [*interface, Route("/openapi.json", openapi), Route("/health", health)]
    described = [route for route in routes if route.path not in PAGE_PATHS]
    documents = [document(described, service.kind, with_token=bool(token))]
    app = Starlette(
        routes=routes,
        exception_handlers={UserError: _on_user_error, HTTPException: _on_http_error, Exception: _on_fault},
    )
    guard = Guard(app, caps=service.caps, token=token, public=public)
    app.state.service, app.state.guard, app.state.runs = service, guard, runs or Runs()
    return guard


async def _on_user_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, UserError)
    return failed(request.url.path, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    messages = {404: f"there is no {path[:80]} here: /openapi.json lists what there is"}
    messages[405] = f"{path[:80]} does not take {request.method}: /openapi.json lists what there is"
    message = messages.get(error.status_code, str(error.detail).split("\n")[0])
    return error_response(path, error.status_code, message, headers=error.headers)


async def _on_fault(request: Request, error: Exception) -> Response:
    what = f"the server made a mistake ({type(error).__name__})"
    return error_response(request.url.path, 500, f"{what}: its terminal shows more; please report it")
