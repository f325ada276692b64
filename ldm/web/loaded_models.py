"""The models of a server that are in memory: loaded when they are needed, and dropped when others need room."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from ldm.errors import UserError
from ldm.generation.model_options import ModelOptions, load_model
from ldm.generation.work import choose_engine_together, compile_for, work_of
from ldm.models.adapters.fuse import lora_name, split_weight
from ldm.models.devices import free_cached_memory
from ldm.models.generation_settings import GenerationSettings
from ldm.pipeline.batches import Batch, ImageRequest
from ldm.pipeline.pipeline import Pipeline
from ldm.web.latent_previews import fit_colors
from ldm.web.served_model import ServedLora, ServedModel, describe, distinct_names

if TYPE_CHECKING:
    from ldm.models.engines.openvino_denoiser import OpenVINODenoiser

LoraWeights = tuple[float, ...]
"""A weight for each LoRA of a model, in the order of its options."""

_ONE = (ImageRequest(1, "", 0, GenerationSettings()),)
"""An image with the model's defaults, for which the denoiser is prepared."""


@dataclass
class LoadedModel:
    """A model in memory.

    Attributes:
        weights: of its LoRAs.
        engines: what runs its denoiser, by whether deep features are reused; nothing for torch.
    """

    options: ModelOptions
    pipeline: Pipeline
    weights: LoraWeights
    engines: "dict[bool, OpenVINODenoiser | None]" = field(default_factory=dict)
    _colors: Tensor | None = None

    def choose_engine(self, images: Batch) -> None:
        """Have what runs the denoiser for the images of a job be what `ldm generate` would choose for them.

        Raises:
            UserError: these images cannot be made this way.
        """
        reuses = work_of(self.pipeline, images).reuses_features
        if reuses and self.options.compile:
            what = "deep features that are reused do not work with a compiled model"
            raise UserError(what, "leave preset and deep_features_every out")
        if reuses not in self.engines:
            engine = self.options.engine or "torch"
            self.engines[reuses] = choose_engine_together(engine, self.pipeline, images, None)
        self.pipeline.engine = self.engines[reuses]

    @property
    def colors(self) -> Tensor:
        """The map from latents to colours, for previews."""
        if self._colors is None:
            autoencoder = self.pipeline.autoencoder
            self._colors = fit_colors(autoencoder.decode, autoencoder.num_channels, self.pipeline.device)
        return self._colors


class LoadedModels:
    """Loads models as `ldm generate` does, each with the weights of its LoRAs that an image needs.

    Args:
        models: what each model is made with.
        most: the models in memory at once; the least recently used one is dropped.
    """

    def __init__(self, models: Sequence[ModelOptions], most: int) -> None:
        self.models = tuple(models)
        self.most = most
        self._loaded: OrderedDict[int, LoadedModel] = OrderedDict()

    def describe(self) -> list[ServedModel]:
        """What clients are told of each model. All are loaded for it, the first ones last, so that they stay."""
        described: list[ServedModel] = []
        for number in reversed(range(len(self.models))):
            options = self.models[number]
            named = [split_weight(text)[0] for text in options.loras]
            loras = [
                ServedLora(lora_name(path), weight)
                for path, weight in zip(named, given_weights(options), strict=True)
            ]
            described.insert(0, describe(self.get(number).pipeline, loras, number=number))
        names = distinct_names([model.name for model in described])
        return [replace(model, name=name) for model, name in zip(described, names, strict=True)]

    def get(self, number: int, weights: LoraWeights | None = None) -> LoadedModel:
        """A model, loaded if it is not, or with other weights of its LoRAs.

        Args:
            weights: None for those it was given with.

        Raises:
            UserError: it cannot be loaded, or not run as its options say.
        """
        options = self.models[number]
        wanted = given_weights(options) if weights is None else weights
        found = self._loaded.pop(number, None)
        if found is None or found.weights != wanted:
            found = None  # the memory is needed for the next one
            self._make_room()
            found = _loaded(options, wanted)
        self._loaded[number] = found
        return found

    def _make_room(self) -> None:
        while len(self._loaded) >= self.most:
            self._loaded.popitem(last=False)
        free_cached_memory()


def given_weights(options: ModelOptions) -> LoraWeights:
    """The weights that a model's LoRAs were given with."""
    weights = [split_weight(text)[1] for text in options.loras]
    return tuple(1.0 if weight is None else weight for weight in weights)


def _loaded(options: ModelOptions, weights: LoraWeights) -> LoadedModel:
    """A model with its LoRAs at these weights; those at 0 are left out."""
    paths = [split_weight(text)[0] for text in options.loras]
    used = [f"{path}:{weight}" for path, weight in zip(paths, weights, strict=True) if weight]
    pipeline = load_model(replace(options, loras=tuple(used)), None)
    model = LoadedModel(options, pipeline, weights)
    model.choose_engine(_ONE)
    if options.compile:
        compile_for(pipeline, [_ONE])
    return model
