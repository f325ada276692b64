"""Reproduce an image: what its PNG says, and whether the model at hand is the one that made it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ldm.errors import UserError
from ldm.models.control.hints import REFERENCE
from ldm.models.generation_settings import GenerationSettings
from ldm.models.identity import Identity, changed_parts
from ldm.models.loading.source import EMBEDDED, HUB_ID
from ldm.models.parts import ModelParts
from ldm.models.settings_reading import parse_settings
from ldm.pipeline.batches import Prompt
from ldm.pipeline.control_images import ControlImage
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

    def with_controls(self, prompt: Prompt) -> Prompt:
        """A prompt whose control images have the original's scales where they are left open.

        Raises:
            UserError: one is missing or another one.
        """
        maps = [used for used in self.record.controls if used.kind != REFERENCE]
        given = {control.kind: control for control in prompt.controls if control.kind != REFERENCE}
        for used in maps:
            asked = f"--control {used.kind}"
            size, digest = f"{used.width} x {used.height} pixels", used.sha256[:10]
            if used.kind not in given:
                what = f"{self.path} was made with {asked}, {size} (hash {digest})"
                raise UserError(what, f"give it again: {asked}=FILE")
            control = given[used.kind]
            if control.image.record.sha256 != used.sha256:
                what = f"{control.image.name} is not the control image of kind {used.kind} of {self.path}"
                here = control.image.record.sha256[:10]
                raise UserError(f"{what} ({size}, hash {digest}; here {here})", "give that one")
            if control.scale is None:
                given[used.kind] = replace(control, scale=used.scale)
        return replace(prompt, controls=(*given.values(), *self._references(prompt)))

    def _references(self, prompt: Prompt) -> list[ControlImage]:
        """The reference images of a prompt, in the original's order and with its scales where they are left open.

        Raises:
            UserError: one is missing.
        """
        left = [control for control in prompt.controls if control.kind == REFERENCE]
        found = []
        for used in (used for used in self.record.controls if used.kind == REFERENCE):
            same = next((each for each in left if each.image.record.sha256 == used.sha256), None)
            if same is None:
                size = f"{used.width} x {used.height} pixels (hash {used.sha256[:10]})"
                what = f"{self.path} was made with --reference, {size}"
                raise UserError(what, "give it again: --reference FILE")
            left.remove(same)
            if same.scale is None and not same.blocks:
                same = replace(same, scale=used.scale, blocks=tuple(sorted(used.blocks.items())))
            found.append(same)
        return found + left

    def other_networks(self, parts: ModelParts) -> str:
        """What to say of networks for control images that are not the original's; empty if all are."""
        named: dict[str, list[str]] = {kind: [each.sha256] for kind, each in parts.controls.items()}
        if parts.image_prompts is not None:
            named[REFERENCE] = [each.sha256 for each in parts.image_prompts.adapters]
        for used in self.record.controls:
            here = named.get(used.kind, [used.network_hash])
            if used.network_hash not in here:
                hashes = f"hash {used.network_hash[:10]}, here {here[0][:10]}"
                return f"{self.path} was made with another network for {used.kind}, {used.name!r} ({hashes})"
        return ""

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
