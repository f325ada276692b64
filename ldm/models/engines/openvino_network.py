"""OpenVINO itself: imported without its reporting, and a network converted, written, read and compiled."""

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
"""What a network's structure is called, with its weights in the `.bin` beside it; optimum-intel looks for that name."""

SIZES_KEPT = 2
"""Sizes that a network stays compiled for: with guidance and, outside its interval, without. Each holds the weights."""

ANY = -1
"""An axis that may have any length."""


def import_openvino() -> Any:
    """The module `openvino`.

    Without its package `openvino_telemetry`, which reports to its maker that it was imported and what is converted.

    Raises:
        UserError: it is not installed.
    """
    with _left_out("openvino_telemetry"):
        try:
            import openvino
        except ImportError as error:
            raise UserError(
                f"OpenVINO cannot be used ({error})",
                'pip install "open-ldm[openvino]", or use the engine torch',
            ) from error
    return openvino


@contextmanager
def _left_out(package: str) -> Iterator[None]:
    """While it lasts, a package is as if it were not installed."""
    before = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]  # documented: importing it then fails
    try:
        yield
    finally:
        del sys.modules[package]
        if before is not None:
            sys.modules[package] = before


@dataclass(frozen=True)
class TracedNetwork:
    """A network as OpenVINO is to have it.

    Attributes:
        network: in evaluation mode and in float32; its `forward` takes the inputs by their names.
        shapes: of the inputs, `ANY` where an axis may vary.
        outputs: names of what it returns.
        example: inputs of any legal sizes, to follow the network's operations with.
        trial: inputs of other sizes, to compare the answers to.
    """

    network: nn.Module
    shapes: Mapping[str, Sequence[int]]
    outputs: Sequence[str]
    example: Mapping[str, Tensor]
    trial: Mapping[str, Tensor]

    def convert(self) -> Any:
        """An `openvino.Model`, which shares the network's weights."""
        openvino = import_openvino()
        with torch.no_grad(), warnings.catch_warnings(), _only_errors_logged():
            warnings.simplefilter("ignore")  # of sizes that Python compares, and of torch's plans for tracing
            model = openvino.convert_model(self.network, example_input=dict(self.example))
        model.reshape({name: openvino.PartialShape(list(shape)) for name, shape in self.shapes.items()})
        for port, name in zip(model.outputs, self.outputs, strict=True):
            port.get_tensor().set_names({name})
        return model

    @torch.no_grad()
    def difference(self, model: Any) -> float:
        """The largest between torch's answers to `trial` and those of an `openvino.Model`, in standard deviations.

        Infinite where an answer is not finite.
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
    """Write an `openvino.Model` into a folder, as `MODEL_FILE` and its weights in float32.

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
        raise UserError(f"{folder / MODEL_FILE} cannot be written", "look for space on the disk") from error


def read_network(folder: Path) -> Any:
    """The `openvino.Model` of a folder, its weights mapped into memory.

    Raises:
        UserError: its files are missing or damaged.
    """
    try:
        return import_openvino().Core().read_model(folder / MODEL_FILE)
    except RuntimeError as error:
        raise UserError(f"{folder / MODEL_FILE} cannot be read", "remove the folder") from error


def compile_network(model: Any) -> Any:
    """An `openvino.CompiledModel` for the CPU, in float32 also where the processor is faster with halves."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # or two processes share the first cores and leave the others idle
    }
    return import_openvino().Core().compile_model(model, "CPU", settings)


class SizedNetwork:
    """An `openvino.Model` compiled for the sizes of a call, which is faster than for any.

    Changing the sizes costs about a second.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._names = [port.get_any_name() for port in model.inputs]
        self._request = lru_cache(maxsize=SIZES_KEPT)(self._compile)

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The outputs by name, in float32 on the CPU, for inputs in the network's order."""
        arrays = [value.detach().to("cpu", torch.float32).contiguous().numpy() for value in inputs]
        request = self._request(tuple(array.shape for array in arrays))
        answers = request.infer(dict(zip(self._names, arrays, strict=True)), share_inputs=True)
        return {port.get_any_name(): torch.from_numpy(output) for port, output in answers.items()}

    def _compile(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """A request to the network compiled for these shapes of its inputs."""
        model = self._model.clone()
        model.reshape({name: list(shape) for name, shape in zip(self._names, shapes, strict=True)})
        return compile_network(model).create_infer_request()
