"""Reproduce an image: what its PNG says, and whether the model at hand is the one that made it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError
from ldm.models.generation_settings import GenerationSettings, parse_settings
from ldm.models.identity import Identity, changed_parts
from ldm.models.loading.source import EMBEDDED, HUB_ID
from ldm.pipeline.batches import Prompt
from ldm.pipeline.input_images import InputImage
from ldm.pipeline.record import ImageRecord, read_record


@dataclass(frozen=True)
class GivenLora:
    """A LoRA file as the user names it; without a weight it has the original's, or 1."""

    path: Path
    sha256: str
    weight: float | None = None


@dataclass(frozen=True)
class Original:
    """The image that is reproduced: its PNG and the record in it."""

    path: Path
    record: ImageRecord

    @property
    def prompt(self) -> Prompt:
        """Its prompt with its settings, the seed included.

        Raises:
            UserError: the seed is out of range.
        """
        given = {**self.record.settings.given(), "seed": self.record.seed}
        return Prompt(self.record.prompt, parse_settings(given, GenerationSettings, where=str(self.path)))

    def model(self) -> str:
        """The model to load, if the recorded name is enough to find it.

        Raises:
            UserError: it is only the name of a folder or file.
        """
        name = self.record.model_id or ""
        if name not in EMBEDDED and not HUB_ID.fullmatch(name):
            kind = "file" if name.endswith(".safetensors") else "folder"
            raise UserError(
                f"{self.path} was made with a model in a {kind} called {name!r}",
                "say where it is with --model",
            )
        return name

    def mismatch(self, identity: Identity | None) -> str:
        """What to say of a model that is not the recorded one; empty if it is.

        The record of an older version holds the hash of the weights and nothing else about the model.
        """
        recorded, here = self.record.weights_hash, identity.weights_hash if identity else None
        if recorded is None or here != recorded:
            hashes = f"hash {str(recorded)[:10]}, here {str(here)[:10]}"
            return f"{self.path} was made with other weights ({hashes})"
        return made_with_others(self.path, self.record.model_parts, identity.image_parts if identity else {})

    def check_inputs(self, given: Mapping[str, InputImage]) -> None:
        """Check that an image is made from the same images again.

        Raises:
            UserError: one is missing or another one.
        """
        for name, recorded in self.record.inputs.items():
            size, digest = f"{recorded.width} x {recorded.height} pixels", recorded.sha256[:10]
            if name not in given:
                what = f"{self.path} was made with --{name}, {size} (hash {digest})"
                raise UserError(what, f"give it again: --{name} FILE")
            if given[name].record != recorded:
                what = f"{given[name].name} is not the {name} that {self.path} was made from"
                raise UserError(
                    f"{what} ({size}, hash {digest}; here {given[name].record.sha256[:10]})", "give that one"
                )

    def missing_loras(self, given: Sequence[GivenLora]) -> str:
        """What to say of LoRAs that made the image and are not given; empty if all are."""
        here = {lora.sha256 for lora in given}
        missing = [lora for lora in self.record.loras if lora.sha256 not in here]
        named = ", ".join(f"{x.name!r} at weight {x.weight:g} (hash {x.sha256[:10]})" for x in missing)
        return f"{self.path} was made with the LoRA {named}" if missing else ""


def made_with_others(path: Path, recorded: Mapping[str, str] | None, here: Mapping[str, str]) -> str:
    """What to say of an image whose model had the same weights but other components; empty if it had not.

    Args:
        recorded: the parts of its model; None in the record of an older version.
        here: those of the model at hand.
    """
    changed = changed_parts(recorded, here) if recorded else []
    if not changed:
        return ""
    return f"{path} was made with the same weights but not the same {', '.join(changed)}"


def weigh_loras(original: Original | None, given: Sequence[GivenLora]) -> list[tuple[Path, float]]:
    """The LoRA files to load, each with its weight: the user's before the original's before 1."""
    recorded = {lora.sha256: lora.weight for lora in original.record.loras} if original else {}
    return [
        (lora.path, recorded.get(lora.sha256, 1.0) if lora.weight is None else lora.weight) for lora in given
    ]


def read_original(path: Path) -> Original:
    """The record in a PNG that `ldm generate` wrote.

    Raises:
        UserError: the file is not a PNG of ours, its record is damaged, or it was made from noise that was given.
    """
    record = read_record(path)
    if record.latents_hash is not None:
        raise UserError(
            f"{path} was made from `latents=`, which the file does not contain and no seed makes again",
            "give the same ones to `Pipeline.generate`",
        )
    return Original(path, record)
