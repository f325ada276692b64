"""What is exported: a model found by name, folder or run, loaded whole, with its adapter beside it."""

from dataclasses import dataclass
from pathlib import Path

from ldm.models.adapters.folder import LORA_FILE, Adapter, adapter_chain, read_adapter
from ldm.models.adapters.lora import LoraWeights
from ldm.models.adapters.lora_files import read_lora
from ldm.models.loading.folder import is_adapter, weights_hash
from ldm.models.loading.model import ModelParts, load_parts
from ldm.models.loading.source import find_model


@dataclass(frozen=True)
class ExportSource:
    """A model on its way out.

    Attributes:
        model_id: a name without a path.
        folder: the model's, in the diffusers layout, or an adapter's.
        parts: float32, on the CPU, an adapter fused in.
        weights_hash: `ldm.models.loading.folder.weights_hash` of the folder.
        run: the run's folder where the source is one.
        base: the folder of the whole model below an adapter.
        adapter: what `adapter.json` says.
        lora: the weights of the adapter where it is a LoRA.
    """

    model_id: str
    folder: Path
    parts: ModelParts
    weights_hash: str
    run: Path | None = None
    base: Path | None = None
    adapter: Adapter | None = None
    lora: LoraWeights | None = None


def load_source(source: str | Path, *, model_id: str | None = None, run: Path | None = None) -> ExportSource:
    """Find and load what is to be exported.

    Args:
        source: as `ldm.pipeline.load_pipeline` takes it: "emoji", a model's or an adapter's folder, a run, a Hub id.
        model_id: in place of the name found.
        run: the run that the model is of, where its folder lies elsewhere.

    Raises:
        UserError: there is no such model, or it is incomplete, damaged, or not allowed.
    """
    folder, found_id = find_model(source)
    parts = load_parts(folder)
    if folder.name == "pipeline" and (folder.parent / "config.yaml").is_file():
        run = folder.parent
    base = adapter = lora = None
    if is_adapter(folder):
        base, _ = adapter_chain(folder)
        adapter = read_adapter(folder)
        lora = read_lora(folder / LORA_FILE) if adapter.kind == "lora" else None
    return ExportSource(model_id or found_id, folder, parts, weights_hash(folder), run, base, adapter, lora)
