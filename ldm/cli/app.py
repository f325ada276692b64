"""The command `ldm` and its subcommands. A user's mistake ends with one line on stderr and exit code 2.

Nothing heavy is imported here, so that `ldm --help` is fast; commands import what they need when they run.
"""

import atexit
import errno
import os
import signal
import sys
import threading
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ldm.cli.audit import audit_app
from ldm.cli.benchmark import benchmark
from ldm.cli.compare import compare
from ldm.cli.data import data_app
from ldm.cli.doctor import doctor
from ldm.cli.ema import ema
from ldm.cli.evaluate import evaluate
from ldm.cli.export import export
from ldm.cli.forget import forget
from ldm.cli.generate import generate
from ldm.cli.import_model import import_model
from ldm.cli.info import info
from ldm.cli.init import init
from ldm.cli.ledger import ledger
from ldm.cli.likelihood import likelihood
from ldm.cli.plot import plot
from ldm.cli.provenance import provenance_app
from ldm.cli.push import push
from ldm.cli.schema import schema
from ldm.cli.serve import serve
from ldm.cli.train import train
from ldm.cli.tune_steps import tune_steps
from ldm.cli.verify import verify
from ldm.errors import UserError, nearest
from ldm.io.files import FULL
from ldm.io.memory import memory_fault
from ldm.io.messages import own_warnings, say_error
from ldm.io.standard_streams import discard_output
from ldm.io.stopping import StopAtOnce, stopping
from ldm.version import __version__


class Commands(TyperGroup):
    """A group of commands that reports errors in one line.

    Attributes:
        stop: what a signal did to the command that runs.
    """

    stop: StopAtOnce

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command line; exits with 0, with 2 for a user's mistake, or with 130 after Ctrl-C."""
        standalone = options.pop("standalone_mode", True)
        code = self._run(*args, **options)
        if standalone:
            sys.exit(code)
        return code

    def _run(self, *args: Any, **options: Any) -> int:
        options["standalone_mode"] = False  # otherwise typer prints errors itself, over several lines
        self.stop = StopAtOnce()  # a signal may come before the block below has begun
        try:
            with stopping(self.stop), own_warnings():
                code = int(super().main(*args, **options) or 0)
            # typer ends with 130 and no word, if a signal comes while it reads the command line
            return self._say_stopped("stopped") if code == 130 and not self.stop.told else code
        except (KeyboardInterrupt, typer.Abort):
            return self._say_stopped("stopped")
        except UserError as error:
            say_error(str(error))
        except OSError as error:
            return _failed_output(error)
        except Exception as error:
            if shortage := memory_fault(error):
                say_error(str(shortage))
                return 2
            if not hasattr(error, "format_message"):
                raise
            say_error(_usage_message(error))
        return 2

    def invoke(self, ctx: Any) -> Any:
        """Run a subcommand; Ctrl-C ends it without a traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise typer.Exit(self._say_stopped(str(stop) or "stopped")) from None

    def _say_stopped(self, message: str) -> int:
        """Print that a signal stopped the command; returns the exit code."""
        self.stop.told = True
        typer.echo(message, err=True)
        return 128 + (self.stop.number or signal.SIGINT)


def _failed_output(error: OSError) -> int:
    """The exit code after standard output could not be written to, or a disk is full; other errors are raised again.

    If the reader of the output has gone, such as `head`, there is nothing to say, and the code is the one for SIGPIPE.
    """
    try:
        sys.stdout.flush()
        where = error.filename or "standard output"  # an error of a file names it
    except OSError:  # it still holds what it could not write
        discard_output(sys.stdout)
        where = "standard output"
        if error.errno == errno.EPIPE:
            return 128 + signal.SIGPIPE
    if error.errno not in FULL:
        raise error
    say_error(f"{where} cannot be written: the disk is full: free some space and run again")
    return 2


def _usage_message(error: Any) -> str:
    """What is wrong with the command line, and which command shows its help."""
    ctx = getattr(error, "ctx", None)
    hint = f" (see {ctx.command_path} --help)" if ctx else ""
    if ctx and type(error).__name__ == "NoSuchOption":  # of click, or of typer's copy of it
        return f"{error.message.rstrip('.')}{_meant_option(ctx, error.option_name)}{hint}"
    return str(error.format_message()).rstrip(".") + hint


def _meant_option(ctx: Any, option: str) -> str:
    """The option that an unknown one was most likely meant to be: one that other programs call so, or a similar one."""
    known = {name.lstrip("-"): name for each in ctx.command.params for name in each.opts if name[0] == "-"}
    names = {name.replace("-", "_"): name for name in known}
    guess = nearest(option.lstrip("-").replace("-", "_"), names)
    return f": did you mean {known[names[guess]]}?" if guess else ""


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"ldm {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="ldm", cls=Commands, add_completion=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
app.command()(generate)
app.command()(serve)
app.command()(init)
app.command()(train)
app.command()(evaluate)
app.command()(compare)
app.command()(ledger)
app.command()(forget)
app.add_typer(audit_app, name="audit")
app.command()(plot)
app.command()(likelihood)
app.command()(schema)
app.command()(ema)
app.command()(export)
app.command()(verify)
app.command()(push)
app.command(name="import")(import_model)
app.command()(info)
app.command(name="tune-steps")(tune_steps)
app.add_typer(provenance_app, name="provenance")
app.add_typer(data_app, name="data")
app.command()(doctor)
app.command()(benchmark)


@app.callback(invoke_without_command=True)
def ldm(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Latent diffusion: generate images from text, and train models on your own captioned images.

    Try:  ldm generate "a red apple"
    """
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def main() -> None:
    """Run the command line of this process, and exit."""
    try:
        app(prog_name="ldm")
    except SystemExit as end:
        _exit_quickly(end)


def _exit_quickly(end: SystemExit) -> None:
    """Exit after the registered exit handlers, but without tearing down the loaded libraries.

    Deallocating torch, diffusers and transformers object by object takes a fifth of the time of `ldm generate`.
    """
    running = [thread for thread in threading.enumerate() if not thread.daemon]
    if running != [threading.main_thread()] or not isinstance(end.code, int):
        raise end
    _run_exit_handlers()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:  # the reader has gone, or the disk is full
        os._exit(end.code or _failed_output(error))
    os._exit(end.code)


def _run_exit_handlers() -> None:
    """Run what was registered with `atexit`. Python has no public call for it; tests/io/test_collector.py checks it."""
    atexit._run_exitfuncs()
