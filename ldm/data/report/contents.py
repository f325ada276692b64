"""The contents of a data report: plain values that are written as JSON."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SampleOutcome:
    """What happened to a sample.

    Attributes:
        sample_id: of the `Sample` or of the refusal.
        used: whether it can be used, for training or held out.
        reason: why it cannot be used; empty if it can.
        width: of the upright image in pixels; None if it could not be decoded.
        height: likewise.
        bucket: the size it is trained at, "width x height" in pixels; None if no sizes were asked for.
        scaled: the size the image is scaled to before it is cropped, "width x height".
        crops: (top, left) of each crop in the scaled image.
        notes: what is ignored in the file, such as "animated: first of 12 frames used".
        num_tokens: of its longest caption, including start and end; None without a tokenizer.
        held_out: whether a run holds it out of training, for validation.
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
        num_captions: their number.
        num_different: the number of different ones.
        unit: of `lengths`: "tokens", or "letters" without a tokenizer.
        context_length: how many tokens the text encoder reads, including start and end; None without a tokenizer.
        lengths: (length, number of captions), sorted by length.
        truncated: captions that are too long, longest first.
    """

    num_captions: int
    num_different: int
    unit: str
    context_length: int | None
    lengths: list[tuple[int, int]]
    truncated: list[TruncatedCaption]


@dataclass(frozen=True)
class LicenceReport:
    """Licence and author fields of the samples: for each field, value -> number of samples."""

    fields: dict[str, dict[str, int]]
    num_without: int


@dataclass(frozen=True)
class RareWord:
    """A word that few captions have, and the ids of their samples."""

    word: str
    sample_ids: list[str]


@dataclass(frozen=True)
class Doubts:
    """What may be wrong with used samples; they are used all the same.

    Attributes:
        rare_words: words in the captions of too few samples to be learned.
        num_words: the number of different words.
        contradictions: groups of equal images, by id, whose captions contradict each other.
        odd_aspects: ids of images that are much wider or taller than most.
        odd_sizes: ids of images that are much larger or smaller than most.
    """

    rare_words: list[RareWord] = field(default_factory=list)
    num_words: int = 0
    contradictions: list[list[str]] = field(default_factory=list)
    odd_aspects: list[str] = field(default_factory=list)
    odd_sizes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DataReport:
    """Everything known about the data before the first step; `write_report` writes it.

    Attributes:
        num_repeats: used samples that are repeats (`#2`, `#3`) of another; they do not count as duplicates.
        buckets: "width x height" -> number of used samples, smallest width first.
        sizes: of the upright images, "width x height" -> number of used samples, most common first.
        exact_duplicates: groups of used samples whose images have the same bytes, by id.
        near_duplicates: groups of used samples that look alike, by id; exact duplicates are represented by the first.
        notes: note -> ids of the used samples that have it.
        fingerprint: of the used samples, 64 hex digits; None for a check without a run.
        num_held_out: used samples that are held out of training, for validation.
        doubts: what may be wrong with used samples.
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
    doubts: Doubts = field(default_factory=Doubts)
