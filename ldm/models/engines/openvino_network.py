"""Import OpenVINO without its telemetry, and convert, write, read and compile networks."""

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.io.files import check_free_space, disk_errors

MODEL_FILE = "openvino_model.xml"
"""File of a network's structure; its weights are in the `.bin` file next to it. optimum-intel expects this name."""

SIZES_KEPT = 2
"""Compiled sizes to keep: with guidance and, outside its interval, without. Each one holds a copy of the weights."""

LARGE_BYTES = 10**9
"""Weights from which a network is compiled for a single row, so that one copy of them serves any batch."""

ANY = -1
"""An axis that may have any length."""


def import_openvino() -> Any:
    """Import the module `openvino`.

    The import hides the package `openvino_telemetry`, which reports imports and conversions to its vendor.

    Raises:
        UserError: OpenVINO is not installed.
    """
    with _left_out("openvino_telemetry"):
        try:
            import openvino
        except ImportError as error:
            raise UserError(
                f"OpenVINO cannot be used ({error})",
                "pip install openvino, or use the engine torch",
            ) from error
    return openvino


@contextmanager
def _left_out(package: str) -> Iterator[None]:
    """Hide a package inside the block, as if it were not installed."""
    before = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]  # documented: None makes its import fail
    try:
        yield
    finally:
        del sys.modules[package]
        if before is not None:
            sys.modules[package] = before


@dataclass(frozen=True)
class TracedNetwork:
    """A network to convert to OpenVINO.

    Attributes:
        network: in evaluation mode and in float32; its `forward` takes the inputs by name.
        shapes: shapes of the inputs, with `ANY` for axes of variable length.
        outputs: names of the outputs.
        example: inputs of any valid sizes, used for tracing.
        trial: inputs of other sizes, for comparing the outputs with torch's.
    """

    network: nn.Module
    shapes: Mapping[str, Sequence[int]]
    outputs: Sequence[str]
    example: Mapping[str, Tensor]
    trial: Mapping[str, Tensor]

    def convert(self) -> Any:
        """An `openvino.Model` that shares the network's weights."""
        openvino = import_openvino()
        with torch.no_grad(), warnings.catch_warnings(), _only_errors_logged():
            warnings.simplefilter(
                "ignore"
            )  # about size comparisons in Python, and torch's deprecation of tracing
            model = openvino.convert_model(self.network, example_input=dict(self.example))
        model.reshape({name: openvino.PartialShape(list(shape)) for name, shape in self.shapes.items()})
        for port, name in zip(model.outputs, self.outputs, strict=True):
            port.get_tensor().set_names({name})
        return model

    @torch.no_grad()
    def difference(self, model: Any) -> float:
        """The largest difference between torch's and an `openvino.Model`'s outputs for `trial`, in standard deviations.

        Infinite if any difference is not finite.
        """
        expected = self.network(**self.trial)
        output = compile_network(model)({name: value.numpy() for name, value in self.trial.items()})
        pairs = zip([expected] if isinstance(expected, Tensor) else expected, self.outputs, strict=True)
        found = [(torch.from_numpy(output[name]) - one).abs().max() / one.std() for one, name in pairs]
        return max(float(each) if each.isfinite() else float("inf") for each in found)


@contextmanager
def _only_errors_logged() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def write_network(model: Any, folder: Path) -> None:
    """Write an `openvino.Model` to a folder: `MODEL_FILE`, and the weights in float32.

    Raises:
        UserError: the disk is full or not writable.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    check_free_space(folder, sum(node.get_byte_size() for node in constants))
    try:
        import_openvino().save_model(model, folder / MODEL_FILE, compress_to_fp16=False)
    except RuntimeError as error:
        raise UserError(f"{folder / MODEL_FILE} cannot be written", "check the free disk space") from error


def read_network(folder: Path) -> Any:
    """Read the `openvino.Model` in a folder; its weights are memory-mapped.

    Raises:
        UserError: the files are missing or damaged.
    """
    try:
        return import_openvino().Core().read_model(folder / MODEL_FILE)
    except RuntimeError as error:
        raise UserError(f"{folder / MODEL_FILE} cannot be read", "remove the folder") from error


def compile_network(model: Any) -> Any:
    """An `openvino.CompiledModel` for the CPU, in float32 even if the processor is faster in half precision."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # otherwise two processes share the first cores and leave the others idle
    }
    return import_openvino().Core().compile_model(model, "CPU", settings)


class SizedNetwork:
    """A network in a folder, compiled for the exact sizes of a call, which is faster than compiling for any size.

    Changing the sizes takes about a second. A large network is called row by row: on a CPU that takes as long, and a
    second compiled size would take as much memory again as all its weights.
    """

    def __init__(self, folder: Path, *, large_bytes: int = LARGE_BYTES) -> None:
        """Takes the folder of `write_network`.

        Raises:
            UserError: the files are missing or damaged.
        """
        self._folder = folder
        self._names = [port.get_any_name() for port in read_network(folder).inputs]
        self._row_by_row = (folder / MODEL_FILE).with_suffix(".bin").stat().st_size >= large_bytes
        self._request = lru_cache(maxsize=1 if self._row_by_row else SIZES_KEPT)(self._compile)

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The outputs by name, in float32 on the CPU, for inputs [B, ...] in the network's order."""
        parts = zip(*(torch.split(each, 1) for each in inputs), strict=True) if self._row_by_row else [inputs]
        outputs = [self._infer(part) for part in parts]
        return {name: torch.cat([each[name] for each in outputs]) for name in outputs[0]}

    def _infer(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        arrays = [value.detach().to("cpu", torch.float32).contiguous().numpy() for value in inputs]
        request = self._request(tuple(array.shape for array in arrays))
        answers = request.infer(dict(zip(self._names, arrays, strict=True)), share_inputs=True)
        return {port.get_any_name(): torch.from_numpy(output) for port, output in answers.items()}

    def _compile(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """An inference request of the network compiled for these input shapes.

        The network is read anew each time, because one that is kept would hold its weights a second time.
        """
        if self._row_by_row:
            self._request.cache_clear()  # first, so that there are never two copies
        model = read_network(self._folder)
        model.reshape({name: list(shape) for name, shape in zip(self._names, shapes, strict=True)})
        return compile_network(model).create_infer_request()
