"""TensorBoard and Weights & Biases beside metrics.jsonl: numbers, and the settings without what is private.

TensorBoard's files are written here: the writers of torch and Accelerate put the computer's name into the file name and
start a second run for the settings. Weights & Biases goes through Accelerate, told to collect nothing of the machine.
"""

import getpass
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any, Literal, Protocol

from ldm.errors import UserError
from ldm.files import disk_errors, read_json, write_json

TrackerName = Literal["tensorboard", "wandb"]

PATH_KEYS = re.compile(r"(^|_)(path|dir|folder|file|base|masks|autoencoder|text_encoder)$")
"""Settings whose text is a path, however it looks."""
SECRET_KEYS = re.compile(r"(^|_)(token|secret|password|api_key|key)$", re.IGNORECASE)
TOKENS = re.compile(
    r"\bhf_\w{10,}|\bgh[pousr]_\w{10,}|\bgithub_pat_\w+|\bsk-[\w-]{16,}|\bAKIA\w{12,}|\bwandb_v\d_\w+|\b[0-9a-f]{40}\b"
    r"|\beyJ[\w-]+\.[\w-]+\.[\w-]+|\w+://[^\s/@]+@\S*"
)
WHOLE_PATH = re.compile(r"\s*(~|\.{0,2}[/\\]|[A-Za-z]:[/\\])|\S*[/\\]\S*$")
"""Text that is a path as a whole: it begins like one, or has a separator and no space."""
PATHS = re.compile(r"(?<![\w.~/\\<])(?:~|\.{1,2}|[A-Za-z]:)?[/\\]+[^\s\"',;]+|\w+://\S+")
ORDINARY_NAMES = {"root", "user", "admin", "localhost"}
"""Names of users and hosts that say nothing about whose they are."""


class Tracker(Protocol):
    """Something that is told the numbers of a run."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take in the numbers of a step."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


def open_trackers(
    names: Sequence[TrackerName], run_dir: Path, settings: Mapping[str, Any], *, start_step: int = 0
) -> list[Tracker]:
    """Start trackers; only the main process should. `settings` are redacted here.

    Raises:
        UserError: the package of one is not installed.
    """
    check_trackers(names)
    config = redacted(settings)
    kinds: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": WeightsAndBiases,
    }
    return [kinds[name](run_dir, config, start_step) for name in dict.fromkeys(names)]


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Refuse a tracker whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"trackers: {name} is not installed", f"pip install open-ldm[{name}]")


class TensorBoard:
    """Event files in `run_dir/tensorboard/`, one a start; TensorBoard drops steps that a resumed run does again."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], start_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.folder = run_dir / "tensorboard"
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}").open("xb")
        self.records = RecordWriter(file)
        self._write(file_version="brain.Event:2")
        self._write(step=start_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._write(step=start_step, summary=_text_summary("settings", json.dumps(config, indent=2)))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One scalar a name."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=Summary(value=scalars))

    def close(self) -> None:
        """Close the file."""
        self.records.close()

    def _write(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        with disk_errors(self.folder):
            self.records.write(Event(wall_time=time.time(), **content).SerializeToString())
            self.records.flush()


def _text_summary(tag: str, text: str) -> Any:
    """JSON text as the plugin `text` shows it: indented by four, Markdown leaves it as it is."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    shown = "\n".join(f"    {line}" for line in text.splitlines())
    tensor = TensorProto(dtype=DT_STRING, string_val=[shown.encode()])
    return Summary(value=[Summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=tensor)])


class WeightsAndBiases:
    """A run of the project `open-ldm` (or $WANDB_PROJECT); a resumed run goes on in the same one."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], start_step: int) -> None:
        import wandb
        from accelerate.tracking import WandBTracker

        self.tracker = WandBTracker(
            os.environ.get("WANDB_PROJECT", "open-ldm"),
            id=_wandb_id(run_dir),
            name=redacted(run_dir.name),
            resume="allow",
            dir=str(run_dir),
            settings=wandb.Settings(**PRIVATE),
        )
        self.tracker.start()
        self.tracker.store_init_configuration(dict(config))
        self.tracker.run.define_metric("step")
        self.tracker.run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """The step travels as a number: a step done again after a resumption is then not refused."""
        self.tracker.log({**values, "step": step})

    def close(self) -> None:
        """Send what is left."""
        self.tracker.finish()


PRIVATE: dict[str, Any] = {
    "host": "-",
    "x_disable_meta": True,  # command line, paths, user
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "console": "off",  # the lines on the console name the run's folder
    "silent": True,
}
"""Settings of wandb that keep it from collecting anything but the numbers it is given."""


def _wandb_id(run_dir: Path) -> str:
    """The run's id at Weights & Biases: drawn once, kept in the run's folder."""
    path = run_dir / "wandb.json"
    if not path.is_file():
        write_json(path, {"id": uuid.uuid4().hex[:12]})
    return str(read_json(path)["id"])


def redacted(value: Any, key: str = "", names: Sequence[str] | None = None) -> Any:
    """A tree of settings with `<path>`, `<secret>` and `<name>` in place of what is private.

    Private are: paths, as a Path, by the setting's name or by their look; tokens, by their look or because an
    environment variable with such a name holds them; addresses; the names of this user and this computer.

    Args:
        key: the setting that `value` belongs to.
        names: of users and computers; by default this machine's.
    """
    names = own_names() if names is None else names
    if isinstance(value, Mapping):
        return {str(name): redacted(inner, str(name), names) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redacted(inner, key, names) for inner in value]
    if isinstance(value, PurePath):
        return "<path>"
    return _redacted_text(value, key, names) if isinstance(value, str) else value


def _redacted_text(text: str, key: str, names: Sequence[str]) -> str:
    if SECRET_KEYS.search(key):
        return "<secret>"
    for secret in _secrets():
        text = text.replace(secret, "<secret>")
    text = TOKENS.sub("<secret>", text)
    if PATH_KEYS.search(key) or WHOLE_PATH.match(text):
        return "<path>"
    text = PATHS.sub("<path>", text)
    for name in names:
        text = re.sub(
            rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "<name>", text, flags=re.IGNORECASE
        )
    return text


def _secrets() -> list[str]:
    """What the environment holds under names such as HF_TOKEN."""
    names = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|(^|_)KEY", re.IGNORECASE)
    return [value for name, value in os.environ.items() if names.search(name) and len(value) >= 8]


def own_names() -> list[str]:
    """The names of this user and this computer, without ordinary ones such as `root`."""
    host = socket.gethostname()
    found = {host, host.partition(".")[0], Path.home().name}
    with suppress(OSError, KeyError):  # a user without a name has none to hide
        found.add(getpass.getuser())
    return sorted((n for n in found if len(n) > 1 and n.lower() not in ORDINARY_NAMES), key=len, reverse=True)
