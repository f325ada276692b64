"""The interface of the page, which programs may use too: jobs with progress and previews, images, grids, settings."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from ldm.errors import UserError
from ldm.generation.reproduce import Original
from ldm.io.image_metadata import ImageFormat
from ldm.io.image_writing import RECORD_KEY, SUFFIXES
from ldm.io.json_files import parse_json
from ldm.pipeline.record import ImageRecord
from ldm.provenance.credentials import MIME_TYPES
from ldm.web.form import describe_form, read_controls, read_settings, read_weights
from ldm.web.guard import COOKIE, Guard, same_text
from ldm.web.queue import Job, NotFound, ServedImage
from ldm.web.service import Asked, Service, client_of, text_of
from ldm.web.uploads import from_base64

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".html": "text/html"}


def service_of(request: Request) -> Service:
    """The service of the application."""
    service: Service = request.app.state.service
    return service


async def json_object(request: Request) -> dict[str, Any]:
    """The JSON object that a request carries; an empty body is an empty object.

    Raises:
        UserError: it is something else.
    """
    body = await request.body()
    try:
        value = parse_json(body) if body else {}
    except ValueError as error:
        raise UserError(
            f"the request is not JSON ({error})", 'send such as {"prompt": "a red apple"}'
        ) from None
    if not isinstance(value, dict):
        raise UserError("the request is not a JSON object", 'send such as {"prompt": "a red apple"}')
    return value


# The page


def static(name: str) -> Response:
    """A file of the page; only names in this module's code come here."""
    file = STATIC / name
    return Response(file.read_bytes(), media_type=MEDIA_TYPES[file.suffix])


async def page(request: Request) -> Response:
    """The page."""
    return static("page.html")


async def static_file(request: Request) -> Response:
    """A style, script or icon of the page."""
    names = {file.name for file in STATIC.iterdir()}
    if request.path_params["name"] not in names:
        raise NotFound("there is no such file", "open / for the page")
    return static(request.path_params["name"])


async def login(request: Request) -> Response:
    """The form that asks for the token, and what checks it."""
    if request.method == "GET":
        return static("login.html")
    guard: Guard = request.app.state.guard
    form = await request.form(max_files=0, max_fields=1)
    given = str(form.get("token", ""))
    if not guard.may_try(request.client.host if request.client else "local"):
        return HTMLResponse("too many wrong tokens: wait a minute", 429)
    if not same_text(given, guard.token):
        return HTMLResponse((STATIC / "login.html").read_text().replace("hidden", ""), 401)
    response = RedirectResponse("/", 303)
    response.set_cookie(COOKIE, given, httponly=True, samesite="strict")
    return response


# Jobs


async def form(request: Request) -> Response:
    """What the page's form is built from, for the first model or the one that is named."""
    service = service_of(request)
    name = request.query_params.get("model")
    model = service.find_model(name) if name else service.model
    return JSONResponse(describe_form(service.kind, model, service.caps, list(service.models)))


async def submit(request: Request) -> Response:
    """Put a request into the queue; the answer has the job's id."""
    service, given = service_of(request), await json_object(request)
    asked = await run_in_threadpool(read_asked, service, given)
    job = await run_in_threadpool(service.submit, client_of(request), asked)
    return JSONResponse(describe_job(service, job), 202)


def read_asked(service: Service, given: Mapping[str, Any]) -> Asked:
    """What a request asks for, its images decoded.

    Raises:
        UserError: a setting is wrong, an image cannot be used, or the model is not served here.
    """
    model = service.find_model(given["model"]) if given.get("model") else service.model
    settings = read_settings(given, service.kind)
    photo = from_base64(given["image"], "image") if given.get("image") else None
    mask = from_base64(given["mask"], "mask") if given.get("mask") else None
    mask_image = None if mask is None else service.uploads.image(mask, "mask", "mask")
    if given.get("mask_from_alpha") and photo is not None:
        mask_image = service.uploads.image(photo, "image", "alpha")
    controls = {
        kind: (service.uploads.image(data, f"controls.{kind}.image"), scale)
        for kind, (data, scale) in read_controls(given.get("controls")).items()
    }
    return Asked(
        text_of(given, "prompt"),
        settings,
        None if photo is None else service.uploads.image(photo, "image"),
        mask_image,
        controls,
        read_weights(given.get("loras")),
        text_of(given, "grid_x"),
        text_of(given, "grid_y"),
        model,
    )


async def job_list(request: Request) -> Response:
    """The jobs of this client, the oldest first; or with `?ids=A,B`, those of them that are still there."""
    service = service_of(request)
    if ids := request.query_params.get("ids"):
        jobs = service.queue.find_all(ids.split(",")[: service.caps.waiting])
    else:
        jobs = service.queue.jobs_of(client_of(request))
    return JSONResponse({"jobs": [describe_job(service, job) for job in jobs]})


async def job_state(request: Request) -> Response:
    """How far a job is, and its images."""
    service = service_of(request)
    return JSONResponse(describe_job(service, service.queue.find(request.path_params["job"])))


async def cancel(request: Request) -> Response:
    """Cancel a job."""
    service = service_of(request)
    job = service.queue.find(request.path_params["job"])
    service.queue.cancel(job)
    return JSONResponse(describe_job(service, job))


def describe_job(service: Service, job: Job) -> dict[str, Any]:
    """A job, ready for JSON."""
    turn = job.oldest_turn
    return {
        "id": job.id,
        "state": job.state,
        "created": job.created,
        "place": service.queue.place_of(job),
        "progress": round(job.progress, 4),
        "step": turn.step if turn else 0,
        "num_steps": turn.num_steps if turn else 0,
        "num_images": job.num_images,
        "previews": [data_url(png) for png in turn.previews] if turn else [],
        "images": [describe_image(job, image) for image in list(job.images)],
        "has_axes": job.layout is not None,
        "warnings": list(job.warnings),
        "error": str(job.error) if job.error else None,
    }


def describe_image(job: Job, image: ServedImage) -> dict[str, Any]:
    """A finished image, ready for JSON."""
    record = image.record
    return {
        "number": image.number,
        "seed": image.seed,
        "prompt": record.prompt,
        "model": record.model_id,
        "width": record.settings.width,
        "height": record.settings.height,
        "file_name": image.file_name,
        "url": image_path(job, image),
    }


def image_path(job: Job, image: ServedImage) -> str:
    """Where an image is on this server."""
    return f"/ldm/jobs/{job.id}/images/{image.number}{SUFFIXES[image.file_format]}"


def data_url(png: bytes) -> str:
    """A PNG as a URL that contains it."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


async def image_file(request: Request) -> Response:
    """A finished image as the file that `ldm generate` writes."""
    job = service_of(request).queue.find(request.path_params["job"])
    found = next((image for image in job.images if image_path(job, image) == request.url.path), None)
    if found is None:
        name = request.url.path.rpartition("/")[2]
        raise NotFound(f"the job has no image {name:.40}", f"it has {len(job.images)} now")
    return image_response(found.data, found.file_name, found.file_format)


async def sheet(request: Request) -> Response:
    """The images of a job side by side."""
    service = service_of(request)
    job = service.queue.find(request.path_params["job"])
    png = await run_in_threadpool(service.sheet_file, job)
    return image_response(png, "grid.png")


def image_response(data: bytes, name: str, file_format: ImageFormat = "png") -> Response:
    """An image that a browser shows, and saves under a name."""
    letters = "".join(letter if letter.isascii() and letter.isprintable() else "-" for letter in name)
    headers = {
        "content-disposition": f'inline; filename="{letters}"',
        "cache-control": "private, max-age=86400",
    }
    return Response(data, media_type=MIME_TYPES[file_format], headers=headers)


# Settings in an image


async def read_png(request: Request) -> Response:
    """The settings in an image, and which of the models made it."""
    service, given = service_of(request), await json_object(request)
    data = from_base64(given.get("image"), "image")
    return JSONResponse(await run_in_threadpool(settings_in, service, data))


def settings_in(service: Service, data: bytes) -> dict[str, Any]:
    """What is stored in an image of ours: its prompt and settings as a request has them, and a note on the model.

    Raises:
        UserError: it is not a PNG, JPEG or WebP, or has no record of ours.
    """
    record = read_record(service, data)
    original = Original(Path("the image"), record)
    settings = {**original.prompt.settings.given()}
    if record.task:
        sizes = (record.settings.height, record.settings.width)
        given = record.inputs.get("image")
        if given and (given.height, given.width) == sizes:
            settings = {name: value for name, value in settings.items() if name not in ("height", "width")}
    made_by = next((m.name for m in service.models.values() if m.weights_hash == record.weights_hash), None)
    other = f"made with another model, {record.model_id}: the image will be different"
    return {
        "prompt": record.prompt,
        "settings": settings,
        "needs": list(record.inputs),
        "model": made_by,
        "note": "" if made_by else other,
        "text": record.to_json(),
    }


def read_record(service: Service, data: bytes) -> ImageRecord:
    """The record in a PNG, JPEG or WebP.

    Raises:
        UserError: it is none of these, or has no record of ours.
    """
    texts = service.uploads.texts(data, "image")
    if RECORD_KEY not in texts:
        raise UserError("the image has no `ldm` settings", "give one as `ldm generate` or this page made it")
    try:
        flat = parse_json(texts[RECORD_KEY])
    except ValueError as error:
        raise UserError(f"the settings in the image are broken ({error})", "use the original file") from None
    if not isinstance(flat, dict):
        raise UserError("the settings in the image are not an object", "use the original file")
    return ImageRecord.from_json(flat, where="the image", kind=service.kind)


ROUTES = [
    Route("/", page),
    Route("/static/{name}", static_file),
    Route("/login", login, methods=["GET", "POST"]),
    Route("/ldm/form", form),
    Route("/ldm/jobs", submit, methods=["POST"]),
    Route("/ldm/jobs", job_list, methods=["GET"]),
    Route("/ldm/jobs/{job}", job_state, methods=["GET"]),
    Route("/ldm/jobs/{job}", cancel, methods=["DELETE"]),
    *(Route(f"/ldm/jobs/{{job}}/images/{{number:int}}{suffix}", image_file) for suffix in SUFFIXES.values()),
    Route("/ldm/jobs/{job}/grid.png", sheet),
    Route("/ldm/read", read_png, methods=["POST"]),
]
"""The page's files, and what the page calls."""
