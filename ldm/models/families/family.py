"""What a family of models is: its components, how its prompts are encoded, and what its files look like.

Code outside of this folder never asks which family a model is of: it asks the family for the component, the key map or
the function that it needs. A new family is one file here and one line in `ldm.models.families.registry`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ldm.models.clip import ClipTextEncoder

Configs = Mapping[str, Mapping[str, Any]]
"""The configuration of each component, by the component's name: the contents of its `config.json`."""

Weights = dict[str, Tensor]
"""A network's weights by name."""

Size = tuple[int, int]
"""Height and width, or top and left, in pixels."""


@dataclass(frozen=True)
class SizeConditions:
    """What UNets with time ids are told of an image's size.

    Attributes:
        original: before it was resized and cropped.
        crop: top left corner of the crop in the resized image.
        target: of the crop.
        aesthetic_score: how good the image looks, for refiners.
    """

    original: tuple[float, float]
    crop: tuple[float, float]
    target: tuple[float, float]
    aesthetic_score: float = 6.0


@dataclass(frozen=True)
class Component:
    """A component of a model: a subfolder of the diffusers layout, listed in `model_index.json`.

    Attributes:
        library: that the class comes from.
        classes: names allowed in `model_index.json`; the first is loaded and written.
        module: where that class is imported from; empty for a component that is only a configuration.
        stem: the name of the weights' files without suffix; None for a component without weights.
        keep_float32: load the weights in float32 even where the model is loaded in half precision.
    """

    library: Literal["diffusers", "transformers"]
    classes: tuple[str, ...]
    module: str = ""
    stem: str | None = None
    keep_float32: bool = False

    def load_class(self) -> Any:
        """The class itself; its library is imported only now, as that is slow."""
        return getattr(import_module(self.module), self.classes[0])


class Width(NamedTuple):
    """A number that two components must agree on: `wanted` by the UNet, `given` by another component."""

    what: str
    wanted: Any
    given: Any
    component: str


@dataclass(frozen=True)
class LoraNames:
    """How LoRA files name the layers of one network.

    Attributes:
        kohya_prefix: the beginning of kohya's names, such as `lora_unet_`.
        is_text: a text encoder, whose layers have `text_model.` before their names in most files.
        inner: what comes before them in the network itself.
        comfy_prefixes: the beginnings of ComfyUI's names.
        original_name: a layer's name in single files, which ComfyUI uses, or None for a layer without one.
        kohya_is_original: kohya's names come from `original_name`, as in Stable Diffusion XL.
    """

    kohya_prefix: str
    is_text: bool = False
    inner: str = ""
    comfy_prefixes: tuple[str, ...] = ()
    original_name: Callable[[str], str | None] | None = None
    kohya_is_original: bool = False


@dataclass(frozen=True)
class OriginalNetwork:
    """One network in a single file.

    Attributes:
        prefix: the beginning of its weights' names.
        to_original: weights by the names of diffusers or transformers -> by the names after the prefix.
        from_original: the way back. Both raise KeyError for an unknown name.
        read_settings: the network's settings, from its weights by the names of diffusers or transformers.
        assumed_settings: the settings that readers of a single file assume of a network with this configuration.
        num_levels: of a UNet or an autoencoder.
        max_layers: readers leave out the layers of a text encoder from this one on; None: they read all.
    """

    prefix: str
    to_original: Callable[[Mapping[str, Tensor]], Weights]
    from_original: Callable[[Mapping[str, Tensor]], Weights]
    read_settings: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    assumed_settings: Callable[[Mapping[str, Any]], dict[str, Any]]
    max_layers: int | None = None
    num_levels: int = 4


@dataclass(frozen=True)
class FileContent:
    """What is read of a single file.

    Attributes:
        weights: by their names in the file, without those that no network has.
        names: all names in the file; some are empty tensors that mark a property.
        metadata: the text in the header.
        scaling_factor: of the latents.
    """

    path: Path
    weights: Weights
    names: frozenset[str]
    metadata: Mapping[str, str]
    scaling_factor: float


@dataclass(frozen=True)
class SingleFile:
    """How a family is stored in one safetensors file, in the layout of the original programs.

    Attributes:
        matches: whether a file with tensors of these names is of this family.
        networks: by the names of their components.
        tokenizers: the tokenizers that readers of such a file assume, by the names of their components.
        scaling_factor: of the latents, for a file that has no `scale_factor`.
        scheduler_class: in the configuration of a loaded file.
        guess_prediction_type: "epsilon" or "v_prediction", where the file does not say.
        sample_size: the default side of the latents, by prediction type.
        architecture: the name in ModelSpec, by prediction type.
        task_architecture: the same for models of other tasks than text-to-image, by task.
    """

    matches: Callable[[Collection[str]], bool]
    networks: Mapping[str, OriginalNetwork]
    tokenizers: Callable[[], dict[str, Any]]
    scaling_factor: float
    scheduler_class: str
    guess_prediction_type: Callable[[FileContent], str]
    sample_size: Mapping[str, int]
    architecture: Mapping[str, str]
    task_architecture: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: short and unique, such as "sd1".
        title: the name in messages.
        pipeline_class: the stock diffusers pipeline that loads an exported folder.
        task_pipelines: the stock pipelines of other tasks than text-to-image, by task.
        components: by name; each must be in a folder. "unet", "vae" and "scheduler" are always among them.
        text_encoder: components, by name, and `ModelParts.settings` -> the module that turns prompts into a
            `Conditioning`.
        matches: whether a model with these configurations is of this family.
        widths: the numbers that its components must agree on.
        lora: the networks that a LoRA may change, by name.
        optional: components that a folder may list, which are not loaded.
        ignored: further ones, which saved folders do not list.
        pipeline_settings: further entries of `model_index.json`.
        decisive_settings: those of them that change images, which a model's folder may set otherwise.
        defaults: settings of an image that the stock pipeline has other defaults for.
        scaling_factor: what the stock pipeline takes for the autoencoder's, whatever its configuration says; None where
            it reads that.
        time_ids: what the UNet is told of sizes, as numbers; None for UNets that take none.
        told: what its models are told besides a prompt, see `Setting.told`.
        refiners: the families, by name, whose models can finish the sampling that one of this family has begun.
        single_file: None where the family is not stored that way.
    """

    name: str
    title: str
    pipeline_class: str
    components: Mapping[str, Component]
    text_encoder: Callable[[Mapping[str, Any], Mapping[str, Any]], ClipTextEncoder]
    matches: Callable[[Configs], bool]
    widths: Callable[[Configs], Iterable[Width]]
    lora: Mapping[str, LoraNames]
    optional: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    pipeline_settings: Mapping[str, Any] = field(default_factory=dict)
    task_pipelines: Mapping[str, str] = field(default_factory=dict)
    scaling_factor: float | None = None
    time_ids: Callable[[SizeConditions], tuple[float, ...]] | None = None
    told: frozenset[str] = frozenset()
    refiners: tuple[str, ...] = ()
    decisive_settings: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    single_file: SingleFile | None = None

    def read_settings(self, index: Mapping[str, Any]) -> dict[str, Any]:
        """The decisive settings of a model with this `model_index.json`."""
        return {name: index.get(name, self.pipeline_settings[name]) for name in self.decisive_settings}

    def pipeline_for(self, task: str) -> str:
        """The stock pipeline for models of a task."""
        return self.task_pipelines.get(task, self.pipeline_class)

    @property
    def networks(self) -> dict[str, Component]:
        """The components with weights."""
        return {name: component for name, component in self.components.items() if component.stem}

    @property
    def tokenizers(self) -> dict[str, Component]:
        """The components without weights that are loaded through a class."""
        return {name: one for name, one in self.components.items() if one.module and not one.stem}
