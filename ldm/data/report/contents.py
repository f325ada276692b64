"""What a data report holds: plain values, written as JSON."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SampleOutcome:
    """What became of one sample.

    Attributes:
        sample_id: as in `Sample`, or what a refusal calls it.
        used: whether it can be trained on; one that is held out is used as well.
        reason: why it is not; empty when it is.
        width: of the upright image in pixels; None when it could not be decoded.
        height: likewise.
        bucket: the size it is trained at, "width x height" in pixels; None where sizes were not asked for.
        scaled: what the image is scaled to before it is cropped, "width x height".
        crops: (top, left) in the scaled image, of each crop variant.
        notes: what of the file is left out, such as "animated: first of 12 frames used".
        num_tokens: of its longest caption, start and end included; None without a tokenizer.
        held_out: whether a run keeps it from training, to measure on.
    """

    sample_id: str
    used: bool
    reason: str = ""
    width: int | None = None
    height: int | None = None
    bucket: str | None = None
    scaled: str | None = None
    crops: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()
    num_tokens: int | None = None
    held_out: bool = False


@dataclass(frozen=True)
class TruncatedCaption:
    """A caption with more tokens than the text encoder reads."""

    sample_id: str
    caption: str
    num_tokens: int


@dataclass(frozen=True)
class CaptionReport:
    """The captions of the used samples.

    Attributes:
        num_captions: how many there are.
        num_different: how many different ones.
        unit: what `lengths` are counted in: "tokens", or "letters" without a tokenizer.
        context_length: how many tokens fit, start and end included; None without a tokenizer.
        lengths: (length, number of captions), in the order of length.
        truncated: those that do not fit, longest first.
    """

    num_captions: int
    num_different: int
    unit: str
    context_length: int | None
    lengths: list[tuple[int, int]]
    truncated: list[TruncatedCaption]


@dataclass(frozen=True)
class LicenceReport:
    """What the samples' own fields say of rights: value -> number of samples, for each field."""

    fields: dict[str, dict[str, int]]
    num_without: int


@dataclass(frozen=True)
class DataReport:
    """All that is known of the data before the first step; `write_report` writes it.

    Attributes:
        num_repeats: how many of the used samples are repeats (`#2`, `#3`) of another, which are no duplicates.
        buckets: "width x height" -> number of used samples, the smallest width first.
        sizes: of the upright images, "width x height" -> number of used samples, the most common first.
        exact_duplicates: ids of used samples whose images have the same bytes.
        near_duplicates: ids of used samples that look alike; of exact duplicates the first stands for all.
        notes: note -> ids of the used samples it is of.
        fingerprint: of the used samples' images, captions, masks, and whether each may be mirrored, 64 hex digits; None
            where only a look was taken.
        num_held_out: of the used samples, kept from training to measure on.
    """

    num_found: int
    num_used: int
    num_refused: int
    num_repeats: int
    captions: CaptionReport
    buckets: dict[str, int]
    sizes: dict[str, int]
    exact_duplicates: list[list[str]]
    near_duplicates: list[list[str]]
    licences: LicenceReport
    notes: dict[str, list[str]]
    samples: list[SampleOutcome] = field(repr=False)
    fingerprint: str | None = None
    num_held_out: int = 0
