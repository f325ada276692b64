"""Make a picture again: what its PNG says, and whether the model at hand is the one that made it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.config import Settings, validate
from ldm.errors import UserError
from ldm.generation.prompts import PictureSettings, Prompt
from ldm.models.loading.source import EMBEDDED, HUB_ID
from ldm.pipeline.record import read_settings


class RecordedLora(Settings):
    """A LoRA as a picture's settings name it; the weight is of the change, 1 as trained."""

    name: str
    sha256: str
    weight: float


@dataclass(frozen=True)
class GivenLora:
    """A LoRA file as the user names it; without a weight it has the picture's own, or 1."""

    path: Path
    sha256: str
    weight: float | None = None


@dataclass(frozen=True)
class Recipe:
    """What a PNG of ours says of itself.

    Attributes:
        path: the PNG.
        prompt: the picture's prompt, with every setting.
        model_id: "emoji", a Hub id, or the name of a folder or file.
        weights_hash: of the model that made it, or None for one that was never saved.
        dtype: what the model computed in.
        engine: what computed it.
        loras: what was added to the model.
    """

    path: Path
    prompt: Prompt
    model_id: str
    weights_hash: str | None
    dtype: str | None
    engine: str = "torch"
    loras: tuple[RecordedLora, ...] = ()

    @property
    def settings(self) -> PictureSettings:
        """The settings without the prompt."""
        return PictureSettings(**self.prompt.model_dump(exclude={"prompt"}))

    def model(self) -> str:
        """The model to load, where the recorded name is enough to find it.

        Raises:
            UserError: it is the name of a folder or file only.
        """
        if self.model_id not in EMBEDDED and not HUB_ID.fullmatch(self.model_id):
            kind = "file" if self.model_id.endswith(".safetensors") else "folder"
            raise UserError(
                f"{self.path} was made with a model in a {kind} called {self.model_id!r}",
                "say where it lies with --model",
            )
        return self.model_id

    def mismatch(self, weights_hash: str | None) -> str:
        """What to say of a model with other weights than the recorded ones; empty if they are the same."""
        if self.weights_hash is not None and weights_hash == self.weights_hash:
            return ""
        recorded, here = (str(h)[:10] for h in (self.weights_hash, weights_hash))
        return f"{self.path} was made with other weights (hash {recorded}, here {here})"

    def missing_loras(self, given: Sequence[GivenLora]) -> str:
        """What to say of LoRAs that the picture was made with and that are not given; empty if all are."""
        here = {lora.sha256 for lora in given}
        missing = [lora for lora in self.loras if lora.sha256 not in here]
        named = ", ".join(f"{x.name!r} at weight {x.weight:g} (hash {x.sha256[:10]})" for x in missing)
        return f"{self.path} was made with the LoRA {named}" if missing else ""


def weigh_loras(recipe: Recipe | None, given: Sequence[GivenLora]) -> list[tuple[Path, float]]:
    """The LoRA files to load, each with its weight: the user's before the picture's own before 1."""
    recorded = {lora.sha256: lora.weight for lora in recipe.loras} if recipe else {}
    return [
        (lora.path, recorded.get(lora.sha256, 1.0) if lora.weight is None else lora.weight) for lora in given
    ]


def read_recipe(path: Path) -> Recipe:
    """The recipe in a PNG that `ldm generate` wrote.

    Raises:
        UserError: the file is no PNG of ours, its settings are broken, or it was made from noise that was given.
    """
    settings = read_settings(path)
    if settings.get("latents_hash") is not None:
        raise UserError(
            f"{path} was made from `latents=`, which are not in it and no seed makes again",
            "give the same ones to `Pipeline.generate`",
        )
    known = {key: settings[key] for key in Prompt.model_fields if key in settings}
    return Recipe(
        path=path,
        prompt=validate(Prompt, known, where=str(path)),
        model_id=str(settings.get("model_id")),
        weights_hash=_text(settings, "weights_hash"),
        dtype=_text(settings, "dtype"),
        engine=_text(settings, "engine") or "torch",
        loras=_loras(settings, path),
    )


def _text(settings: dict[str, Any], key: str) -> str | None:
    value = settings.get(key)
    return None if value is None else str(value)


def _loras(settings: dict[str, Any], path: Path) -> tuple[RecordedLora, ...]:
    found = settings.get("loras") or []
    if not isinstance(found, list):
        raise UserError(f"{path}: its `ldm` settings name no list of LoRAs", "use the original file")
    return tuple(validate(RecordedLora, lora, where=f"{path}: loras") for lora in found)
