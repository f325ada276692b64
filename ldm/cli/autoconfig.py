"""What commands read before a run: the model's configuration files, and every image as the run will use it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, PositiveInt

from ldm.errors import UserError, warn

if TYPE_CHECKING:
    from ldm.data.prepare import DataSettings, Prepared
    from ldm.data.sample import ImageInfo, Refusal
    from ldm.data.sources.no_caption import MissingCaption
    from ldm.data.sources.reading import Reading

MAX_OTHER_FRACTION, OTHER_ASPECT = 0.05, 1.1
"""Buckets are turned on if more than this share of the images differs from the model's aspect ratio by this factor."""
MIN_HELD_OUT, MAX_HELD_OUT, HOLDOUT_FROM = 0.02, 0.1, 30
"""The share of images held out, and how many images are needed before any are held out."""


@dataclass(frozen=True)
class BaseFacts:
    """What a model's configuration files say about it.

    Attributes:
        name: as the user wrote it.
        height: its native image height in pixels; `width` likewise.
        multiple: image sides must be multiples of this.
        text_width: D of its prompt embeddings.
        context_length: tokens in a chunk of a caption, including start and end.
        max_chunks: the number of chunks it was made for.
        chunks_needed: caption -> the number of chunks it takes.
        count_tokens: caption -> the number of its tokens, including start and end.
    """

    name: str
    height: int
    width: int
    multiple: int
    prediction_type: str
    text_width: int
    context_length: int
    max_chunks: int
    chunks_needed: Callable[[str], int]
    count_tokens: Callable[[str], int]


@dataclass(frozen=True)
class DataFacts:
    """The images of a data set, with the settings chosen for them.

    Attributes:
        num_found: samples found, usable or not.
        num_held_out: how many of the usable samples are held out.
        num_other_shapes: images whose aspect ratio differs from the model's.
        captions: one caption of each usable sample.
        chunks: how many chunks each caption needs.
        missing: what is done with images that have no caption.
    """

    settings: "DataSettings"
    num_found: int
    num_used: int
    num_held_out: int
    num_other_shapes: int
    captions: tuple[str, ...]
    chunks: tuple[int, ...]
    missing: "MissingCaption" = "error"


class _UnetConfig(BaseModel):
    """What is read of a UNet's configuration."""

    sample_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    block_out_channels: tuple[PositiveInt, ...]


class _VaeConfig(BaseModel):
    """What is read of an autoencoder's."""

    block_out_channels: tuple[PositiveInt, ...]


class _TextConfig(BaseModel):
    """What is read of a text encoder's, with the defaults of transformers, which leaves these out."""

    vocab_size: PositiveInt = 49408
    hidden_size: PositiveInt = 512
    max_position_embeddings: int = Field(77, ge=3)


def describe_base(base: str) -> BaseFacts:
    """Read a model's configuration files.

    Raises:
        UserError: there is no such model, or it is incomplete.
    """
    from ldm.diffusion.paths import prediction_type_of
    from ldm.io.json_files import read_json, read_object
    from ldm.models.adapters.folder import adapter_chain
    from ldm.models.clip import split_chunks
    from ldm.models.loading.component_files import check_rows
    from ldm.models.loading.components import load_tokenizer
    from ldm.models.loading.folder import check_folder, read_defaults
    from ldm.models.loading.source import find_model
    from ldm.models.vae import downscale

    own, _ = find_model(base)
    folder, _ = adapter_chain(own)
    check_folder(folder)
    unet: _UnetConfig = read_json(folder / "unet" / "config.json", _UnetConfig)
    vae: _VaeConfig = read_json(folder / "vae" / "config.json", _VaeConfig)
    text: _TextConfig = read_json(folder / "text_encoder" / "config.json", _TextConfig)
    scheduler = read_object(folder / "scheduler" / "scheduler_config.json")
    factor = downscale(vae.block_out_channels)
    size = unet.sample_size or 64
    height, width = (size, size) if isinstance(size, int) else size
    defaults = read_defaults(own, height * factor, width * factor)
    tokenizer = load_tokenizer(folder / "tokenizer")
    check_rows(folder, "tokenizer", tokenizer, text.vocab_size)
    context_length = min(int(tokenizer.model_max_length), text.max_position_embeddings)

    def chunks_needed(caption: str) -> int:
        encoded = tokenizer(caption, add_special_tokens=False, verbose=False)
        return max(1, len(split_chunks(encoded.word_ids(), context_length - 2)))

    def count_tokens(caption: str) -> int:
        return len(tokenizer(caption, verbose=False)["input_ids"])

    return BaseFacts(
        base,
        defaults.height,
        defaults.width,
        factor * downscale(unet.block_out_channels),
        prediction_type_of(scheduler),
        text.hidden_size,
        context_length,
        defaults.max_prompt_chunks,
        chunks_needed,
        count_tokens,
    )


def survey_reading(
    reading: "Reading", *, rehash: bool = False, quiet: bool = False
) -> "dict[str, ImageInfo | Refusal]":
    """Decode every image that is not in the index, with a progress bar; the results are added to the index."""
    from ldm.data.cache.cache_folder import cache_root
    from ldm.data.image_index import ImageIndex
    from ldm.data.survey import survey
    from ldm.io.progress import work_bar

    image_index = ImageIndex(cache_root(), rehash=rehash)
    try:
        with work_bar("image", hidden=quiet) as bar:
            return survey(reading.samples, image_index, on_progress=bar.show)
    finally:  # what was read before Ctrl-C is kept, too
        try:
            image_index.save()
        except UserError as error:  # the results are valid even if they cannot be saved
            warn(f"{error.what}: the images will be read again; set LDM_CACHE_DIR to a writable folder")


def describe_data(
    source: Mapping[str, object],
    model: BaseFacts,
    *,
    missing: "MissingCaption" = "error",
    max_bad_fraction: float | None = None,
    quiet: bool = False,
) -> DataFacts:
    """Read every image, choose a size, and place and split the images as the run will.

    Args:
        source: the settings that say what is read: `path`, `kind` and the columns.
        missing: what to do with images that have no caption.
        max_bad_fraction: how many images may be unusable, 0 to 1; by default as a run's own default.

    Raises:
        UserError: the data is missing or faulty, or too many images cannot be used.
    """
    from ldm.config import validate
    from ldm.data.prepare import DataSettings, prepare
    from ldm.data.sample import ImageInfo
    from ldm.data.sources.reading import SourceSettings, read_sources

    reading = read_sources([validate(SourceSettings, source, "ldm init")], missing=missing)
    facts = survey_reading(reading, quiet=quiet)
    images = [each for each in facts.values() if isinstance(each, ImageInfo)]
    num_others = sum(_has_other_shape(each, model) for each in images)
    limit = {} if max_bad_fraction is None else {"max_bad_fraction": max_bad_fraction}
    tree = {**source, **choose_size(images, num_others, model), **limit}
    settings = validate(DataSettings, tree, "ldm init")
    prepared = prepare(reading, facts, settings, multiple=model.multiple, seed=0)
    fraction, num_held_out = choose_holdout(prepared)
    captions = tuple(one.sample.text for one in prepared.placed)
    return DataFacts(
        settings.model_copy(update={"holdout_fraction": fraction}),
        prepared.num_found,
        len(prepared.placed),
        num_held_out,
        num_others,
        captions,
        tuple(model.chunks_needed(caption) for caption in captions),
        missing,
    )


def _has_other_shape(facts: "ImageInfo", model: BaseFacts) -> bool:
    return abs(math.log(facts.width * model.height / (facts.height * model.width))) > math.log(OTHER_ASPECT)


def choose_size(images: Sequence["ImageInfo"], num_others: int, model: BaseFacts) -> dict[str, object]:
    """Choose `height`, `width`, `buckets` and `upscale`.

    The model's native size; or, if images are smaller, the largest size down to half of it that 95 % of the images
    fill. If none fits, the native size, and images are enlarged.
    """
    from ldm.data.buckets import BucketSettings, place

    settings = BucketSettings(buckets=num_others > MAX_OTHER_FRACTION * len(images))
    for height in range(model.height, model.height // 2 - 1, -model.multiple):
        width = max(1, round(model.width * height / model.height / model.multiple)) * model.multiple
        size = {"height": height, "width": width}
        places = [
            place(i.width, i.height, **size, multiple=model.multiple, settings=settings, seed=0, sample_id="")
            for i in images
        ]
        if sum(isinstance(each, str) for each in places) <= MAX_OTHER_FRACTION * len(images):
            return {**size, "buckets": settings.buckets, "upscale": False}
    return {"height": model.height, "width": model.width, "buckets": settings.buckets, "upscale": True}


def choose_holdout(prepared: "Prepared") -> tuple[float, int]:
    """The share of images held out, and their number: a tenth, less of large data sets, none of small ones."""
    from ldm.data.prepare import holdout_split

    if len(prepared.placed) < HOLDOUT_FROM:
        return 0.0, 0
    fraction = round(min(MAX_HELD_OUT, max(MIN_HELD_OUT, 200 / len(prepared.placed))), 3)
    _, held_out = holdout_split(prepared.placed, fraction, 0)
    return (fraction, len(held_out)) if held_out else (0.0, 0)
