"""`ldm serve`: a page in the browser and an HTTP interface."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm.cli import options
from ldm.errors import UserError
from ldm.io.collector import collector_paused
from ldm.models.setting_limits import MAX_IMAGES, MAX_SIZE_PX, MAX_STEPS
from ldm.models.settings_as_arguments import spell_out

if TYPE_CHECKING:
    from ldm.generation.model_options import ModelOptions
    from ldm.pipeline.pipeline import Pipeline
    from ldm.provenance.credentials import ImageSigner
    from ldm.provenance.safety import SafetyChecker
    from ldm.web.queue import JobQueue
    from ldm.web.runs_api import Runs
    from ldm.web.service import ServedModel
    from ldm.web.watched_run import RunSource
    from ldm.web.worker import Worker

PACKAGES = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
"""The modules that serving needs, and the packages that have them."""

NETWORKS = {name: options.NETWORKS[name] for name in options.NETWORKS if name != "model"}
COMPUTING = {name: options.COMPUTING[name] for name in ("batch_size", "low_memory", "device", "dtype")}

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="What to generate with, as --model of `ldm generate`.  [default: emoji]",
        show_default=False,
    ),
]
Host = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="The address to listen on. 0.0.0.0 is every address of this machine; anything but 127.0.0.1 needs "
        "--token or --public.",
    ),
]
Port = Annotated[
    int, typer.Option(min=0, max=65535, metavar="N", help="The port to listen on; 0 is a free one.")
]
Token = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT|random",
        envvar="LDM_TOKEN",
        help="What clients must know: the page asks for it, programs send it as `Authorization: Bearer TOKEN` or as "
        "a password. random makes one and prints it.",
    ),
]
Public = Annotated[
    bool,
    typer.Option(
        "--public",
        help="Let anyone who can reach the address use it without a token, and other pages show it in a frame, as a "
        "Space of Hugging Face does. Every limit holds.",
    ),
]
NoPage = Annotated[bool, typer.Option("--no-page", help="Serve the HTTP interface only.")]
MaxSize = Annotated[
    int, typer.Option(min=1, max=MAX_SIZE_PX, metavar="PIXELS", help="The longest side of an image.")
]
MaxSteps = Annotated[int, typer.Option(min=1, max=MAX_STEPS, metavar="N", help="The most sampling steps.")]
MaxImages = Annotated[
    int, typer.Option(min=1, max=MAX_IMAGES, metavar="N", help="The most images of a request.")
]
MaxQueue = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="The most unfinished requests; a client may have a fifth of them."),
]
RunPaths = Annotated[
    list[str] | None,
    typer.Option(
        "--run",
        metavar="RUN|CONFIG",
        help="Show a training run on the page /runs: its folder, or a configuration as of `ldm train`, which can be "
        "started, stopped and resumed there. May be given several times.",
        show_default=False,
    ),
]


def serve(
    model: Model = None,
    *,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    token: Token = None,
    public: Public = False,
    no_page: NoPage = False,
    run: RunPaths = None,
    max_size: MaxSize = 2048,
    max_steps: MaxSteps = 250,
    max_images: MaxImages = 64,
    max_queue: MaxQueue = 100,
    **given: Any,
) -> None:
    """Serve a page in the browser, and an HTTP interface for programs.

    The page is at http://127.0.0.1:7860. Programs use OpenAI's interface (/v1/images) or A1111's (/sdapi/v1). Images
    are the same as those of `ldm generate`, and only this machine can ask for them unless --host says otherwise. On
    several GPUs, each makes images.
    """
    check_installed()
    with collector_paused():
        from ldm.web.application import make_application
        from ldm.web.caps import Caps
        from ldm.web.queue import JobQueue
        from ldm.web.runs_api import Runs
        from ldm.web.service import Service
        from ldm.web.serving import check_token, listen, make_server

    known = secrets.token_urlsafe(16) if token == "random" else token or ""
    check_token(host, known, public=public)
    runs = Runs(_run_sources(run or [], public=public))
    signing = options.take_signing(given)
    signer = signing.signer() if signing else None
    safety = options.take_safety(given)
    checker = safety.checker() if safety else None
    caps = Caps(
        side_px=max_size,
        steps=max_steps,
        images=max_images,
        waiting=max_queue,
        waiting_each=max(1, max_queue // 5),
    )
    with listen(host, port) as opened, _model_options({"model": model, **given}) as chosen:
        queue = JobQueue(caps)
        workers, served = _load(chosen, queue, signer, checker)
        service = Service(served, queue, batch_size=chosen.batch_size, signer=signer)
        application = make_application(service, runs=runs, token=known, with_page=not no_page, public=public)
        for worker in workers:
            worker.start()
        _say_where(host, opened.getsockname()[1], known if token == "random" else "")
        try:
            make_server(application, queue).run(sockets=[opened])
        finally:
            queue.close()
            service.uploads.close()
            _end_trainings(runs)


spell_out(serve, options.parameters_of(NETWORKS), before="host")
spell_out(serve, options.parameters_of(COMPUTING), before="max_size")
spell_out(serve, options.parameters_of({**options.SAFETY, **options.SIGNING}))


def check_installed() -> None:
    """Refuse to start without the packages of the extra `ui`.

    Raises:
        UserError: naming those that are missing.
    """
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if missing:
        what = f"ldm serve needs {' and '.join(missing)}"
        raise UserError(what, f"pip install {' '.join(missing)}")


@contextmanager
def _model_options(given: dict[str, Any]) -> "Iterator[ModelOptions]":
    from ldm.cli.generate import model_options

    empty = dict.fromkeys((*options.NETWORKS, *options.COMPUTING))
    with model_options({**empty, "compile": False, **given}) as chosen:
        yield chosen


def _run_sources(paths: list[str], *, public: bool) -> "list[RunSource]":
    """The runs that the page shows.

    Raises:
        UserError: anyone could start them, or one cannot be shown.
    """
    if paths and public:
        raise UserError("--run with --public would let anyone train", "leave one of them out")
    if not paths:
        return []
    from ldm.cli.served_runs import run_sources

    return run_sources(paths)


def _end_trainings(runs: "Runs") -> None:
    """Stop the trainings that the page has started; they save first."""
    if names := ", ".join(run.source.name for run in runs.training()):
        typer.echo(f"waiting until the training has saved: {names}", err=True)
    runs.close()


def _load(
    chosen: "ModelOptions", queue: "JobQueue", signer: "ImageSigner | None", checker: "SafetyChecker | None"
) -> "tuple[list[Worker], ServedModel]":
    """A worker with its model for each device, and what clients are told of the model."""
    from ldm.generation.model_options import load_model
    from ldm.models.adapters.fuse import lora_name, split_weight
    from ldm.models.devices import devices_to_serve
    from ldm.web.service import ServedLora, describe
    from ldm.web.worker import Worker

    named = [split_weight(text) for text in chosen.loras]
    weights = tuple(1.0 if weight is None else weight for _, weight in named)

    def load(device: str | None, weights: tuple[float, ...]) -> "Pipeline":
        used = [f"{path}:{weight}" for (path, _), weight in zip(named, weights, strict=True) if weight]
        return load_model(replace(chosen, loras=tuple(used), device=device), None)

    pipelines = {device: load(device, weights) for device in devices_to_serve(chosen.device)}
    loras = [ServedLora(lora_name(path), weight) for (path, _), weight in zip(named, weights, strict=True)]
    workers = [
        Worker(
            queue,
            pipeline,
            weights,
            partial(load, device),
            batch_size=chosen.batch_size,
            signer=signer,
            checker=checker,
        )
        for device, pipeline in pipelines.items()
    ]
    return workers, describe(next(iter(pipelines.values())), loras)


def _say_where(host: str, port: int, token: str) -> None:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    typer.echo(f"http://{shown}:{port}")
    if token:
        typer.echo(f"token: {token}")
