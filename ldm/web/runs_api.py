"""The interface of the page of training runs. A run is known by its number: clients name no files."""

from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ldm.errors import UserError
from ldm.web.own_api import image_response, static
from ldm.web.queue import NotFound
from ldm.web.watched_run import PAGES, RunSource, WatchedRun

REPORT_HEADERS = {
    "content-security-policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox"
}
"""Of the reports in a run's folder, which contain their style and images. Whatever is in them, no script runs."""


class Runs:
    """The runs that the server watches."""

    def __init__(self, sources: Sequence[RunSource] = ()) -> None:
        self.all = [WatchedRun(source) for source in sources]

    def find(self, number: int) -> WatchedRun:
        """A run by its number.

        Raises:
            NotFound: there is none.
        """
        if number >= len(self.all):
            raise NotFound("there is no such run", f"this server has {len(self.all)}, numbered from 0")
        return self.all[number]

    def training(self) -> list[WatchedRun]:
        """The runs whose training this server has started and that are not finished."""
        return [run for run in self.all if run.is_training()]

    def close(self) -> None:
        """Ask the trainings to save and end, and wait for them."""
        trainings = [run.training for run in self.training() if run.training is not None]
        for each in trainings:
            each.stop()
        for each in trainings:
            each.wait()


def runs_of(request: Request) -> Runs:
    """The runs of the application."""
    runs: Runs = request.app.state.runs
    return runs


def run_of(request: Request) -> WatchedRun:
    """The run that a request names.

    Raises:
        NotFound: there is none of this number.
    """
    return runs_of(request).find(request.path_params["run"])


async def page(request: Request) -> Response:
    """The page of the training runs."""
    return static("runs.html")


async def run_list(request: Request) -> Response:
    """The training runs and their states."""
    return JSONResponse({"runs": await run_in_threadpool(summaries, runs_of(request))})


def summaries(runs: Runs) -> list[dict[str, Any]]:
    """All runs, ready for JSON."""
    return [{"number": number, **run.summary()} for number, run in enumerate(runs.all)]


async def run_state(request: Request) -> Response:
    """How far a run is, its curves and previews; with `after`, `key` and `log` of the last answer, only what is new."""
    run, asked = run_of(request), request.query_params
    after, log = whole_number(asked.get("after"), -1), whole_number(asked.get("log"), 0)
    number = request.path_params["run"]
    found = await run_in_threadpool(describe, run, after, asked.get("key", ""), log)
    return JSONResponse({"number": number, **found})


def describe(run: WatchedRun, after: float, key: str, log: int) -> dict[str, Any]:
    """A run, ready for JSON."""
    num_lines, lines = run.log.after(log)
    return {
        **run.summary(),
        "curves": run.points_after(after, key),
        "previews": run.previews(),
        **run.preview_layout(),
        "pages": [name for name in PAGES if run.has_page(name)],
        "ledger": run.ledger_time(),
        "log": {"num_lines": num_lines, "lines": lines},
    }


def whole_number(text: str | None, default: int) -> int:
    """A whole number in a query.

    Raises:
        UserError: it is something else.
    """
    if text is None:
        return default
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 15):
        raise UserError(f"{text[:40]!r} is not a whole number", "send the number of the last answer")
    return int(text)


async def preview(request: Request) -> Response:
    """The preview of a step, as PNG: the images of all prompts in a grid."""
    run, step = run_of(request), request.path_params["step"]
    return image_response(await run_in_threadpool(run.preview, step), f"step-{step:06d}.png")


async def report(request: Request) -> Response:
    """The data report or the ledger of a run, as a page."""
    run = run_of(request)
    found = await run_in_threadpool(run.page, request.path_params["page"])
    return Response(found, media_type="text/html", headers=REPORT_HEADERS)


async def ledger(request: Request) -> Response:
    """The samples with the highest loss."""
    return JSONResponse(await run_in_threadpool(run_of(request).ledger))


async def start(request: Request) -> Response:
    """Start the training of a run, or resume it."""
    run = run_of(request)
    await run_in_threadpool(run.start)
    return JSONResponse(await run_in_threadpool(run.summary), 202)


async def stop(request: Request) -> Response:
    """Ask a training to save and end."""
    run = run_of(request)
    await run_in_threadpool(run.stop)
    return JSONResponse(await run_in_threadpool(run.summary), 202)


ROUTES = [
    Route("/runs", page),
    Route("/ldm/runs", run_list),
    Route("/ldm/runs/{run:int}", run_state),
    Route("/ldm/runs/{run:int}/previews/{step:int}.png", preview),
    Route("/ldm/runs/{run:int}/pages/{page}", report),
    Route("/ldm/runs/{run:int}/ledger", ledger),
    Route("/ldm/runs/{run:int}/start", start, methods=["POST"]),
    Route("/ldm/runs/{run:int}/stop", stop, methods=["POST"]),
]
"""The page's file, and what it calls."""
