"""TensorBoard and Weights & Biases in addition to metrics.jsonl: the numbers, and the settings without private values.

TensorBoard's files are written here, because the writers of torch and Accelerate put the computer's name into the file
name and start a second run for the settings. Weights & Biases is used through Accelerate, and set up to collect nothing
about the machine.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from ldm.errors import UserError
from ldm.io.files import disk_errors, write_json
from ldm.io.json_files import read_object
from ldm.io.redaction import redacted

TrackerName = Literal["tensorboard", "wandb"]


class Tracker(Protocol):
    """Something that receives the numbers of a run."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record the numbers of a step."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


def open_trackers(
    names: Sequence[TrackerName], run_dir: Path, settings: Mapping[str, Any], *, start_step: int = 0
) -> list[Tracker]:
    """Start trackers, on the main process only. `settings` are redacted here.

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
            raise UserError(f"trackers: {name} is not installed", f"pip install {name}")


class TensorBoard:
    """Event files in `run_dir/tensorboard/`, one per start; TensorBoard drops steps that a resumed run repeats."""

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
        """Write one scalar per name."""
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
    """JSON for the plugin `text`; indented by four spaces, so that Markdown leaves it unchanged."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    shown = "\n".join(f"    {line}" for line in text.splitlines())
    tensor = TensorProto(dtype=DT_STRING, string_val=[shown.encode()])
    return Summary(value=[Summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=tensor)])


class WeightsAndBiases:
    """A run of the project `open-ldm` (or $WANDB_PROJECT); a resumed run continues the same one."""

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
        """Log the step as a number, since W&B would reject a step that a resumed run repeats."""
        self.tracker.log({**values, "step": step})

    def close(self) -> None:
        """Send the remaining numbers."""
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
    "console": "off",  # lines on the console contain the path of the run
    "silent": True,
}
"""Settings of wandb that keep it from collecting anything but the numbers it is given."""


def _wandb_id(run_dir: Path) -> str:
    """The run's id at Weights & Biases, drawn once and stored in the run's directory."""
    path = run_dir / "wandb.json"
    if not path.is_file():
        write_json(path, {"id": uuid.uuid4().hex[:12]})
    return str(read_object(path).get("id"))
