"""`ldm serve`: a page in the browser and an HTTP interface."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ldm.cli import options
from ldm.errors import UserError
from ldm.io.collector import collector_paused
from ldm.models.setting_limits import MAX_IMAGES, MAX_SIZE_PX, MAX_STEPS
from ldm.models.settings_as_arguments import spell_out

if TYPE_CHECKING:
    from ldm.generation.model_options import ModelOptions
    from ldm.web.image_maker import MakerSetup
    from ldm.web.model_process import ModelProcess
    from ldm.web.runs_api import Runs
    from ldm.web.served_model import ServedModel
    from ldm.web.watched_run import RunSource

PACKAGES = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
"""The modules that serving needs, and the packages that have them."""

NETWORKS = {name: options.NETWORKS[name] for name in options.NETWORKS if name != "model"}

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="What to generate with, as --model of `ldm generate`: one or more, among which clients choose by name. "
        "The first is used where none is named, and --lora and the other networks belong to it.  [default: emoji]",
        show_default=False,
    ),
]
ModelsInMemory = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="The most models in memory at once, on each device. Others are loaded for the first request that "
        "names them, and the least recently used one makes room.",
    ),
]
Engine = Annotated[
    Literal["torch", "openvino"] | None,
    typer.Option(
        help="What runs the denoiser, as of `ldm generate`: torch, or openvino, which is faster on a CPU (pip install "
        "openvino).  [default: torch]",
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the denoiser with torch.compile, as `ldm generate` does: faster on a GPU, but the first image of "
        "each size and number of images takes a minute or more.",
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

COMPUTING: dict[str, Any] = options.COMPUTING | {"engine": Engine, "compile": Compile}


def serve(
    models: Models = None,
    *,
    models_in_memory: ModelsInMemory = 2,
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
    from ldm.web.listening import check_token, listen

    known = secrets.token_urlsafe(16) if token == "random" else token or ""
    check_token(host, known, public=public)
    with listen(host, port) as opened, _processes() as processes:
        with collector_paused():  # while the first process does the same
            from ldm.web.application import make_application
            from ldm.web.caps import Caps
            from ldm.web.image_maker import MakerSetup
            from ldm.web.queue import JobQueue
            from ldm.web.runs_api import Runs
            from ldm.web.service import Service
            from ldm.web.serving import make_server
            from ldm.web.worker import Worker

        runs = Runs(_run_sources(run or [], public=public))
        signing, safety = options.take_signing(given), options.take_safety(given)
        signer = signing.signer() if signing else None
        caps = Caps(
            side_px=max_size,
            steps=max_steps,
            images=max_images,
            waiting=max_queue,
            waiting_each=max(1, max_queue // 5),
        )
        with _model_options(models or ["emoji"], given) as chosen:
            served = _started(processes, MakerSetup(chosen, models_in_memory, caps, signer, safety))
            queue = JobQueue(caps)
            service = Service(served, queue, batch_size=chosen[0].batch_size, signer=signer)
            application = make_application(
                service, runs=runs, token=known, with_page=not no_page, public=public
            )
            for process in processes:
                Worker(queue, process).start()
            _say_where(
                host, opened.getsockname()[1], known if token == "random" else "", list(service.models)
            )
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
def _model_options(models: list[str], given: dict[str, Any]) -> "Iterator[tuple[ModelOptions, ...]]":
    """What each model is made with: LoRAs and other networks are those of the first."""
    from ldm.cli.generate import model_options

    empty = dict.fromkeys((*options.NETWORKS, *options.COMPUTING))
    computing = {name: given[name] for name in COMPUTING}
    with ExitStack() as stack:
        yield tuple(
            stack.enter_context(model_options({**empty, **(computing if number else given), "model": model}))
            for number, model in enumerate(models)
        )


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


def _started(processes: "list[ModelProcess]", setup: "MakerSetup") -> "list[ServedModel]":
    """Start a process for each device besides the first, and have all load the models; returns what they are."""
    from ldm.models.devices import devices_to_serve
    from ldm.web.model_process import ModelProcess

    devices = devices_to_serve(setup.models[0].device)
    processes.extend(ModelProcess() for _ in devices[1:])
    described = []
    for process, device in zip(processes, devices, strict=True):
        models = tuple(replace(each, device=device) for each in setup.models)
        described.append(process.load(replace(setup, models=models)))
    return described[0]


@contextmanager
def _processes() -> "Iterator[list[ModelProcess]]":
    """The processes with the models, the first of which is started; none outlives the block."""
    from ldm.web.model_process import ModelProcess

    processes = [ModelProcess()]
    try:
        yield processes
    finally:
        for process in processes:
            process.close()


def _say_where(host: str, port: int, token: str, names: list[str]) -> None:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    typer.echo(f"http://{shown}:{port}")
    if token:
        typer.echo(f"token: {token}")
    if len(names) > 1:
        typer.echo(f"models: {', '.join(names)}")
