"""The model to be exported: found by name, folder or run, and loaded completely, with its adapter if it has one."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ldm.errors import UserError
from ldm.models.adapters.folder import (
    LORA_FILE,
    Adapter,
    adapter_chain,
    identity_of_model,
    read_adapter,
)
from ldm.models.adapters.lora import LoraWeights
from ldm.models.adapters.lora_files import read_lora
from ldm.models.identity import Identity
from ldm.models.loading.folder import is_adapter
from ldm.models.loading.model import ModelParts, load_parts
from ldm.models.loading.source import find_model
from ldm.models.mean_only import strip_variance


@dataclass(frozen=True)
class ExportSource:
    """A model to be exported.

    Attributes:
        model_id: a name without a path.
        folder: of a model in the diffusers layout, or of an adapter.
        parts: float32, on the CPU, an adapter fused in; without weights after `release`.
        weights_hash: `ldm.models.loading.folder.weights_hash` of the folder.
        run: the folder of the training run that made the model, if known.
        base: the folder of the complete model that an adapter builds on.
        adapter: the contents of `adapter.json`.
        lora: the adapter's weights, if it is a LoRA.
        identity: of the model, if it was loaded from the folder.
        mean_only: a learned variance is left out.
    """

    model_id: str
    folder: Path
    parts: ModelParts
    weights_hash: str
    run: Path | None = None
    base: Path | None = None
    adapter: Adapter | None = None
    lora: LoraWeights | None = None
    identity: Identity | None = None
    mean_only: bool = False

    def weights(self) -> ModelParts:
        """`parts`, loaded again if their weights were released."""
        networks = self.parts.networks().values()
        is_released = any(tensor.is_meta for network in networks for tensor in network.parameters())
        if not is_released:
            return self.parts
        parts = load_parts(self.folder)
        if self.mean_only:
            strip_variance(parts)
        return parts

    def without_variance(self) -> "ExportSource":
        """The same model without a learned variance; its parts are changed."""
        strip_variance(self.parts)
        return replace(self, mean_only=True)

    def release(self) -> None:
        """Free the memory of the weights; configurations and shapes stay. For large models, another needs the room."""
        release(self.parts)


def release(parts: ModelParts) -> None:
    """Free the memory of a model's weights; configurations and shapes stay."""
    for network in parts.networks().values():
        nn.Module.to(network, device="meta")  # diffusers' own `to` warns


def load_source(source: str | Path, *, model_id: str | None = None, run: Path | None = None) -> ExportSource:
    """Find and load a model to be exported.

    Args:
        source: "emoji", the folder of a model, an adapter or a run, or a Hub id, as for `ldm.load_pipeline`.
        model_id: a name to use instead of the source's.
        run: the run that made the model, if its folder is elsewhere.

    Raises:
        UserError: the model does not exist, or is incomplete, damaged, or not allowed.
    """
    folder, found_id = find_model(source)
    parts = load_parts(folder)
    if folder.name == "pipeline" and (folder.parent / "config.yaml").is_file():
        run = folder.parent
    base = adapter = lora = None
    if is_adapter(folder):
        base, _ = adapter_chain(folder)
        adapter = read_adapter(folder)
        if adapter.kind == "controlnet":  # loaded as a model, it is its base
            raise UserError(
                f"{folder} is a ControlNet, and `ldm export` writes models",
                "use the folder as it is: it is in diffusers' layout",
            )
        lora = read_lora(folder / LORA_FILE) if adapter.kind == "lora" else None
    identity = identity_of_model(parts, folder)
    name = model_id or found_id
    return ExportSource(name, folder, parts, identity.weights_hash, run, base, adapter, lora, identity)
