"""Make a picture again: what its PNG says, and whether the model at hand is the one that made it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.config import validate
from ldm.errors import UserError
from ldm.generation.prompts import PictureSettings, Prompt
from ldm.model_source import EMBEDDED, HUB_ID
from ldm.png_metadata import read_settings


@dataclass(frozen=True)
class Recipe:
    """What a PNG of ours says of itself.

    Attributes:
        path: the PNG.
        prompt: the picture's prompt, with every setting.
        model_id: "emoji", a Hub id or a folder's name.
        weights_hash: of the model that made it, or None for one that was never saved.
        dtype: what the model computed in.
    """

    path: Path
    prompt: Prompt
    model_id: str
    weights_hash: str | None
    dtype: str | None

    @property
    def settings(self) -> PictureSettings:
        """The settings without the prompt."""
        return PictureSettings(**self.prompt.model_dump(exclude={"prompt"}))

    def model(self) -> str:
        """The model to load, where the recorded name is enough to find it.

        Raises:
            UserError: it is a folder's name only.
        """
        if self.model_id not in EMBEDDED and not HUB_ID.fullmatch(self.model_id):
            raise UserError(
                f"{self.path} was made with a model in a folder called {self.model_id!r}",
                "say where it lies with --model",
            )
        return self.model_id

    def mismatch(self, weights_hash: str | None) -> str:
        """What to say of a model with other weights than the recorded ones; empty if they are the same."""
        if self.weights_hash is not None and weights_hash == self.weights_hash:
            return ""
        recorded, here = (str(h)[:10] for h in (self.weights_hash, weights_hash))
        return f"{self.path} was made with other weights (hash {recorded}, here {here})"


def read_recipe(path: Path) -> Recipe:
    """The recipe in a PNG that `ldm generate` wrote.

    Raises:
        UserError: the file is no PNG of ours, or its settings are broken.
    """
    settings = read_settings(path)
    known = {key: settings[key] for key in Prompt.model_fields if key in settings}
    return Recipe(
        path=path,
        prompt=validate(Prompt, known, where=str(path)),
        model_id=str(settings.get("model_id")),
        weights_hash=_text(settings, "weights_hash"),
        dtype=_text(settings, "dtype"),
    )


def _text(settings: dict[str, Any], key: str) -> str | None:
    value = settings.get(key)
    return None if value is None else str(value)
