"""The data settings, and samples with their buckets and crops, ready for training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from ldm.data.buckets import BucketSettings, Placement, draw_crop, place
from ldm.data.order import OrderName
from ldm.data.reserved import Reserved, reservation
from ldm.data.sample import MAIN_IMAGE, ImageInfo, ImageInput, Refusal, Sample, read_unchanged
from ldm.data.sources.reading import Reading, SourceSettings
from ldm.data.survey import check_bad_fraction
from ldm.data.transform import crop_corner, transform_image, transform_input, transform_key, transform_mask
from ldm.errors import UserError
from ldm.io.images import WHITE, open_image
from ldm.noise import key_to_seed


class DataSettings(BucketSettings):
    """The captioned images: where they are, the sizes they are trained at, and how many may be unusable."""

    path: str | None = Field(
        None, description="a folder of captioned images, parquet files, tars or a dataset: see `sources`"
    )
    kind: Literal["auto", "folder", "parquet", "webdataset", "datasets"] = Field(
        "auto", description="of `path`: what kind of data it is; auto detects it"
    )
    caption_column: str = Field("text", description="of `path`: the column with the captions")
    image_column: str = Field("image", description="of `path`: the column with the images, as in `sources`")
    sources: tuple[SourceSettings, ...] = Field((), description="several sources, instead of `path`")
    height: int = Field(64, ge=8, description="pixels; with buckets height * width is the budget")
    width: int = Field(64, ge=8, description="pixels")
    flip: bool = Field(False, description="mirror images at random where the caption stays true")
    holdout_fraction: float = Field(
        0.0, ge=0, lt=1, description="fraction of the images held out for validation"
    )
    max_bad_fraction: float = Field(
        0.05, ge=0, le=1, description="the run stops if a larger fraction of the samples cannot be used"
    )
    reserved: Reserved = Field(
        "report",
        description="images whose files reserve AI training (IPTC DataMining, TDM reservation, C2PA): report uses "
        "them, and `ldm data check` lists them; leave_out leaves them out; refuse stops the run",
    )
    order: OrderName = Field(
        "shuffled",
        description="of the samples in an epoch. keyed: the place of each follows from its id, so that `ldm forget` "
        "can take one out",
    )
    leave_out: tuple[str, ...] = Field(
        (),
        description="ids of samples that are not used, or sha256:HASH of such an id, as `ldm forget` writes them",
    )
    leave_out_file: Path | None = Field(
        None,
        description="a CSV file with the ids of samples that are not used in its column sample_id, as `ldm ledger "
        "--drop-list` writes it",
    )
    num_workers: int | None = Field(
        None,
        ge=0,
        description="loader processes; 0 loads in the training process. Default: 4 on CUDA if there are that many "
        "cores, else 0",
    )
    streaming: bool = Field(
        False, description="read parquet files or tars one by one during the run, instead of all before it"
    )

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        if (self.path is None) == (not self.sources):
            raise ValueError("give either data.path or data.sources")
        own = {"kind": "auto", "caption_column": "text", "image_column": "image"}
        for name, default in own.items():
            if self.sources and getattr(self, name) != default:
                raise ValueError(f"{name} belongs to data.path: set it in each of data.sources")
        return self

    @model_validator(mode="after")
    def _check_streaming(self) -> Self:
        if self.streaming and self.holdout_fraction:
            raise ValueError("a stream has no held-out samples: set holdout_fraction=0 or streaming=false")
        if self.streaming and any(source.masks for source in self.sources):
            raise ValueError("a folder of masks cannot be streamed: use alpha_mask, or set streaming=false")
        if self.streaming and self.order == "keyed":
            raise ValueError("a stream has an order of its own: leave order out, or set streaming=false")
        for name in ("leave_out", "leave_out_file"):
            if self.streaming and getattr(self, name):
                raise ValueError(f"{name} needs data that is read before the run: set streaming=false")
        return self

    def all_sources(self) -> tuple[SourceSettings, ...]:
        """`sources`, or `path` as the only one."""
        if self.path is None:
            return self.sources
        columns = {"caption_column": self.caption_column, "image_column": self.image_column}
        return (SourceSettings(path=self.path, kind=self.kind, **columns),)


@dataclass(frozen=True)
class BucketedSample:
    """A sample with what decoding found out, its bucket and its crops.

    Attributes:
        facts: from `survey`.
        placement: its bucket, scale and crops.
    """

    sample: Sample
    facts: ImageInfo
    placement: Placement

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its bucket in pixels."""
        return self.placement.height, self.placement.width

    def latent_shape(self, channels: int, downscale: int) -> tuple[int, int, int]:
        """[C, h, w] of its latents."""
        return channels, self.placement.height // downscale, self.placement.width // downscale

    def crop_at(self, seed: int, epoch: int) -> int:
        """The index of its crop in an epoch."""
        return draw_crop(self.placement, seed=seed, epoch=epoch, sample_id=self.sample.sample_id)

    def pixels(self, crop: int = 0, flip: bool = False) -> Tensor:
        """The pixel values of one crop, [3, H, W] in [-1, 1].

        Raises:
            UserError: the image is gone, or has changed since it was surveyed.
        """
        encoded = read_unchanged(self.sample.image, self.facts.content_hash)
        return transform_image(open_image(encoded, name=self.sample.image.name), self.placement, crop, flip)

    def told_sizes(self, crop: int = 0, flip: bool = False) -> tuple[float, ...]:
        """Height and width of the upright image, top and left of one crop, and height and width of its bucket.

        The crop is cut from the image scaled to cover its bucket.
        """
        image_size = self.facts.height, self.facts.width
        corner = crop_corner(image_size, self.placement, crop, flip)
        return (*map(float, image_size), *corner, *map(float, self.size))

    def input_pixels(self, wanted: ImageInput, crop: int = 0, flip: bool = False) -> Tensor:
        """The same crop of an image that a task needs; `transform_input` gives its shape and range.

        Raises:
            UserError: the image is gone, or has changed since it was surveyed.
        """
        source = self.sample.image if wanted.name == MAIN_IMAGE else self.sample.images[wanted.name]
        encoded = read_unchanged(source, self.content_hash(wanted.name))
        image = open_image(encoded, name=source.name)
        return transform_input(image, self.placement, crop, flip, kind=wanted.kind)

    def content_hash(self, name: str = MAIN_IMAGE) -> str:
        """SHA-256 of the encoded bytes of one of its images, in hex."""
        return (self.facts if name == MAIN_IMAGE else self.facts.named[name]).content_hash

    @property
    def inputs_record(self) -> list[dict[str, str]]:
        """Hashes of the images and the texts that the task needs, as JSON; empty if it needs none."""
        images = {name: found.content_hash for name, found in self.facts.named.items()}
        return [images, dict(self.sample.texts)] if images or self.sample.texts else []

    def mask(self, crop: int, flip: bool, downscale: int) -> Tensor:
        """The same crop of the loss mask, [1, h, w] in [0, 1]; ones for a sample without a mask."""
        source = self.sample.loss_mask
        if source is None:
            image = Image.new("L", (self.facts.width, self.facts.height), 255)
        else:
            image = open_image(source.read(), name=source.name).convert("L")
        return transform_mask(image, self.placement, crop, flip, pixels_per_latent=downscale)

    def variant_key(self, crop: int, flip: bool) -> str:
        """A canonical description of one crop; part of the cache key of each of the sample's images."""
        return transform_key(self.placement, crop, flip, WHITE)


@dataclass(frozen=True)
class Prepared:
    """The samples that can be used and those that cannot: used + refused = found."""

    placed: list[BucketedSample]
    refusals: list[Refusal]

    @property
    def num_found(self) -> int:
        return len(self.placed) + len(self.refusals)

    def placements(self) -> dict[str, Placement | str]:
        """The placement of each sample, or why it cannot be used."""
        placed = {one.sample.sample_id: one.placement for one in self.placed}
        return {**placed, **{refusal.sample_id: refusal.reason for refusal in self.refusals}}


def holdout_split(
    placed: Sequence[BucketedSample], fraction: float, seed: int
) -> tuple[list[BucketedSample], list[BucketedSample]]:
    """Split into (train, held out), with about `fraction` held out.

    Samples with the same image stay together, so that no held-out image is trained on. The split depends only on the
    seed and the first sample id of each image, not on the order or on what other images there are.
    """
    first: dict[str, str] = {}
    for one in placed:
        known = first.get(one.facts.content_hash, one.sample.sample_id)
        first[one.facts.content_hash] = min(known, one.sample.sample_id)

    def is_held_out(one: BucketedSample) -> bool:
        return key_to_seed(seed, first[one.facts.content_hash], "holdout") / 2**63 < fraction

    return [p for p in placed if not is_held_out(p)], [p for p in placed if is_held_out(p)]


def prepare(
    reading: Reading,
    facts: Mapping[str, ImageInfo | Refusal],
    settings: DataSettings,
    *,
    multiple: int,
    seed: int,
) -> Prepared:
    """Assign each sample a bucket and crops; refuse, by name, those that cannot be used.

    Args:
        facts: from `survey`, by sample id.
        multiple: with buckets, image sides are multiples of this many pixels.

    Raises:
        UserError: more than `max_bad_fraction` of the samples cannot be used, or one reserves AI training and
            `reserved` is "refuse".
    """
    placed: list[BucketedSample] = []
    refusals = list(reading.refusals)
    left_out = _reserved(reading.samples, facts, settings.reserved)
    for sample in reading.samples:
        where = _place(sample, facts[sample.sample_id], settings, multiple, seed)
        if isinstance(where, Refusal):
            refusals.append(where)
        elif sample.sample_id not in left_out:
            placed.append(where)
    bad = {refusal.sample_id for refusal in refusals}
    prepared = Prepared(placed, refusals + [each for id_, each in left_out.items() if id_ not in bad])
    check_bad_fraction(prepared.num_found, refusals, settings.max_bad_fraction)
    return prepared


def _reserved(
    samples: Sequence[Sample], facts: Mapping[str, ImageInfo | Refusal], reserved: Reserved
) -> dict[str, Refusal]:
    """The refusals of samples whose images reserve AI training, by id; none if they are used anyway."""
    if reserved == "report":
        return {}
    found = {sample.sample_id: reservation(sample, facts[sample.sample_id]) for sample in samples}
    left_out = {id_: refusal for id_, refusal in found.items() if refusal is not None}
    if left_out and reserved == "refuse":
        first = next(iter(left_out.values())).reason
        what = f"{len(left_out)} of {len(samples)} images reserve AI training"
        raise UserError(f"{what} ({first})", "leave them out with data.reserved=leave_out")
    return left_out


def _place(
    sample: Sample, facts: ImageInfo | Refusal, settings: DataSettings, multiple: int, seed: int
) -> BucketedSample | Refusal:
    if isinstance(facts, Refusal):
        return facts
    where = place(
        facts.width,
        facts.height,
        height=settings.height,
        width=settings.width,
        multiple=multiple,
        settings=settings,
        seed=seed,
        sample_id=sample.sample_id,
    )
    if isinstance(where, str):
        return Refusal(sample.sample_id, f"{sample.image.name}: {where}")
    return BucketedSample(sample, facts, where)
