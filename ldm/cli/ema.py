"""`ldm ema`: the average of the weights with any width, rebuilt from the snapshots of a training run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm.cli.printer import Printer, reporting
from ldm.errors import UserError, warn

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.diffusion.ema import Rebuilding, Snapshot
    from ldm.models.loading.model import ModelParts

FILE = "averages.safetensors"


@reporting
def ema(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="The folder of a finished training run that kept snapshots."),
    ],
    width: Annotated[
        float,
        typer.Option("--width", help="Width of the average, relative to the run: above 0 and at most 0.28."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Where to write the model. Default: RUN/pipeline-width-WIDTH."),
    ] = None,
    *,
    printer: Printer,
) -> None:
    """Write a model with the average of a run's weights, for any width.

    The run needs optim.average.snapshot_every, ideally with two widths such as [0.05, 0.1] (Karras et al. 2024). The
    model is the one in RUN/pipeline with the trained weights replaced. The residual says how much of the requested
    average the snapshots cannot express; it is large for widths far from theirs.
    """
    from ldm.diffusion.ema import Snapshot, gamma_of, rebuild

    gamma_of(width)  # raises for an invalid width before anything is read
    output = output or run / f"pipeline-width-{width:g}"
    snapshots = _find_snapshots(run / "averages")
    _check_folders(run / "pipeline", output)
    wanted = Snapshot(max(snapshot.step for snapshot in snapshots), width)
    rebuilding = rebuild(list(snapshots), wanted)
    made = {"average_width": width, "average_step": wanted.step}
    _write_model(run / "pipeline", output, _combine(snapshots, rebuilding), made)
    text = (
        f"{output}: width {width:g} at step {wanted.step}, from {len(snapshots)} averages, "
        f"residual {100 * rebuilding.residual:.2g} %"
    )
    facts = {
        "output": str(output),
        "width": width,
        "step": wanted.step,
        "num_averages": len(snapshots),
        "residual": float(rebuilding.residual),
    }
    printer.result(facts, text)


def _check_folders(pipeline: Path, output: Path) -> None:
    from ldm.io.folders import is_taken

    if not pipeline.is_dir():
        raise UserError(f"{pipeline} does not exist", "finish the run first; it must be a denoiser's")
    if is_taken(output):
        raise UserError(f"{output} exists already", "choose another --output or move it away")


def _find_snapshots(folder: Path) -> "dict[Snapshot, Path]":
    """The file of each stored average, oldest first; damaged snapshots are skipped with a warning.

    Raises:
        UserError: there are none.
    """
    from ldm.diffusion.ema import Snapshot, split_name
    from ldm.io.files import manifest_fault, open_tensors

    found: dict[Snapshot, Path] = {}
    for path in sorted(folder.glob("step-*")):
        if fault := manifest_fault(path):
            warn(f"{fault}; this snapshot is skipped")
            continue
        with open_tensors(path / FILE) as file:
            widths = {split_name(stored)[0] for stored in file.keys()}  # noqa: SIM118  # it is not a dict
        found |= {Snapshot(int(path.name.removeprefix("step-")), w): path / FILE for w in sorted(widths)}
    if not found:
        raise UserError(
            f"{folder} has no snapshots", "train with optim.average.widths and optim.average.snapshot_every"
        )
    return found


def _combine(snapshots: "Mapping[Snapshot, Path]", rebuilding: "Rebuilding") -> "dict[str, Tensor]":
    """The requested average of each weight by name, in float64. Only one snapshot's tensor is in memory at a time.

    Raises:
        UserError: the snapshots do not all contain the same weights.
    """
    from ldm.diffusion.ema import split_name, stored_name
    from ldm.io.files import open_tensors

    total: dict[str, Tensor] = {}
    for (snapshot, path), share in zip(snapshots.items(), rebuilding.coefficients, strict=True):
        with open_tensors(path) as file:
            names = {name for width, name in map(split_name, file.keys()) if width == snapshot.width}
            if total and names != total.keys():
                raise UserError(
                    f"{path} contains other weights than the rest", "remove snapshots of another run"
                )
            for name in names:
                part = float(share) * file.get_tensor(stored_name(snapshot.width, name)).double()
                total[name] = total[name] + part if name in total else part
    return total


def _write_model(pipeline: Path, output: Path, average: "Mapping[str, Tensor]", made: dict[str, Any]) -> None:
    """Write a copy of `pipeline`, a whole model or an adapter, with the averaged weights."""
    from ldm.models.loading.folder import is_adapter
    from ldm.models.loading.model import load_parts, save_parts

    provenance = {**_provenance(pipeline), **made}
    if is_adapter(pipeline):
        return _write_adapter(pipeline, output, average, provenance)
    parts = load_parts(pipeline)
    _replace(parts, average, pipeline)
    save_parts(parts, output, provenance=provenance)


def _write_adapter(
    pipeline: Path, output: Path, average: "Mapping[str, Tensor]", provenance: dict[str, Any]
) -> None:
    from ldm.models.adapters.embedding import EmbeddingSettings, add_embedding, embedding_file
    from ldm.models.adapters.folder import (
        LORA_FILE,
        adapter_chain,
        apply_adapters,
        check_base,
        save_adapter,
    )
    from ldm.models.adapters.lora import apply_lora, lora_weights
    from ldm.models.adapters.lora_files import read_lora
    from ldm.models.loading.folder import read_defaults
    from ldm.models.loading.model import default_size, load_parts

    base, [*inner, (_, adapter)] = adapter_chain(pipeline)
    parts = load_parts(base)
    apply_adapters(parts, base, inner)
    check_base(pipeline, adapter, parts, base, [folder for folder, _ in inner])
    defaults = read_defaults(pipeline, *default_size(parts.denoiser, parts.autoencoder))
    if adapter.kind == "embedding":
        add_embedding(parts.text_encoder, EmbeddingSettings(**adapter.settings))
        _replace(parts, average, pipeline)
        token = embedding_file(parts.text_encoder, adapter.settings["token"])
        return save_adapter(output, adapter, token, defaults, provenance=provenance)
    if adapter.kind == "controlnet":
        from ldm.models.control.controlnet import ControlledUNet
        from ldm.models.control.load_networks import load_controls

        kind = str(adapter.settings["kind"])
        net = load_controls({kind: pipeline}, parts)[kind].network
        parts.denoiser = ControlledUNet(parts.denoiser.unet, net)
        _replace(parts, average, pipeline)
        return save_adapter(output, adapter, net, defaults, provenance=provenance)
    networks = parts.lora_networks()
    apply_lora(networks, read_lora(pipeline / LORA_FILE), fuse=False)
    _replace(parts, average, pipeline)
    save_adapter(output, adapter, lora_weights(networks), defaults, provenance=provenance)


def _replace(parts: "ModelParts", average: "Mapping[str, Tensor]", pipeline: Path) -> None:
    """Copy the averaged weights into a model; training names them `denoiser.NAME` and `text_encoder.NAME`."""
    import torch

    networks = {"denoiser": parts.denoiser, "text_encoder": parts.text_encoder}
    weights = {
        f"{part}.{name}": w for part, network in networks.items() for name, w in network.named_parameters()
    }
    for name, tensor in average.items():
        if name not in weights or weights[name].shape != tensor.shape:
            raise UserError(f"{pipeline} has no {name} of shape {list(tensor.shape)}", "is it from this run?")
        with torch.no_grad():
            weights[name].copy_(tensor)


def _provenance(pipeline: Path) -> dict[str, Any]:
    from ldm.io.json_files import read_object

    path = pipeline / "ldm.json"
    given = read_object(path).get("provenance", {}) if path.is_file() else {}
    # a checkpoint has other averages
    return {k: v for k, v in given.items() if k != "checkpoint_hash"} if isinstance(given, dict) else {}
