"""What a card is about: the model, the model that it came from, the run that made it, and where it will lie."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.export.card.run_record import RunRecord
from ldm.export.card.source_card import SourceCard
from ldm.export.export_source import ExportSource
from ldm.io.redaction import redacted
from ldm.models.loading.folder import ADAPTER
from ldm.models.loading.source import EMBEDDED, HUB_ID

LORA_FORMATS = ("lora-diffusers", "lora-peft", "lora-kohya")


@dataclass(frozen=True)
class BaseModel:
    """The model that training started from.

    Attributes:
        name: as people are told it: a Hub id, an embedded model's name, or what a folder is called.
        hub_id: USER/NAME where it is known to be one.
    """

    name: str
    hub_id: str | None = None


@dataclass(frozen=True)
class CardSubject:
    """A written export, as far as its card tells of it.

    Attributes:
        folder: where it lies now.
        name: what its folder is called in the end.
        repo_id: USER/NAME where it is going to the Hub.
        prompt: an example that suits the model.
        base: what it was trained from; None for a model from nothing, and for one that is only rewritten.
        run: the run that made it.
        source_card: the card that it came with, where it is only rewritten.
    """

    source: ExportSource
    folder: Path
    name: str
    repo_id: str | None
    format: str
    prompt: str
    base: BaseModel | None = None
    run: RunRecord | None = None
    source_card: SourceCard | None = None

    @property
    def place(self) -> str:
        """What others name it by: its id on the Hub, or its folder."""
        return self.repo_id or self.name

    @property
    def is_lora_file(self) -> bool:
        """Whether it is of use with its base alone."""
        return self.format in LORA_FORMATS

    @property
    def keeps_lora_apart(self) -> bool:
        """Whether the base is written with the LoRA's file beside it."""
        return self.format == "diffusers" and (self.folder / "pytorch_lora_weights.safetensors").is_file()

    @property
    def token(self) -> str | None:
        """The new word of a textual inversion."""
        adapter = self.source.adapter
        return str(adapter.settings["token"]) if adapter is not None and adapter.kind == "embedding" else None


def find_base(source: ExportSource, run: RunRecord | None) -> BaseModel | None:
    """The model that training started from."""
    given = source.adapter.base if source.adapter else run.setting("base") if run else None
    if not isinstance(given, str):
        return None
    if hub_id := hub_id_of(given):
        return BaseModel(hub_id, hub_id)
    return BaseModel(given if given in EMBEDDED else str(redacted(given, "path", name_paths=True)))


def hub_id_of(model: str) -> str | None:
    """The Hub id in a model's name, where it is one for certain: no folder here, and in this machine's Hub cache."""
    from huggingface_hub import try_to_load_from_cache

    if not HUB_ID.fullmatch(model) or Path(model).exists():
        return None
    repo_id, _, revision = model.partition("@")
    cached = (
        try_to_load_from_cache(repo_id, file, revision=revision or None)
        for file in ("model_index.json", ADAPTER)
    )
    return repo_id if any(isinstance(path, str) for path in cached) else None


def hub_datasets(run: RunRecord | None) -> list[str]:
    """The ids of the data sets on the Hub that a run was trained on."""
    data: Any = run.setting("data") if run else None
    sources = [data, *(data.get("sources") or ())] if isinstance(data, dict) else []
    found = [
        str(source["path"])
        for source in sources
        if isinstance(source, dict) and source.get("kind") == "datasets" and "path" in source
    ]
    return [name for name in dict.fromkeys(found) if HUB_ID.fullmatch(name) and not Path(name).exists()]
