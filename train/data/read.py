"""The run's samples: read, decoded once by all processes together, assigned to buckets, split, and reported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ldm.data.fingerprint import Fingerprint, fingerprint, mask_files
from ldm.data.image_index import ImageIndex
from ldm.data.leave_out import without
from ldm.data.prepare import BucketedSample, DataSettings, Prepared, holdout_split, prepare
from ldm.data.report.report import make_report, write_report
from ldm.data.sample import NO_INPUTS, ImageInfo, Refusal, Sample, TaskInputs
from ldm.data.sources.no_caption import MissingCaption
from ldm.data.sources.reading import Reading, read_sources
from ldm.data.survey import content_hashes, survey
from ldm.errors import UserError
from ldm.models.clip import ClipTextEncoder

from ..run.run import Run


@dataclass(frozen=True)
class TrainingData:
    """The training and validation samples of a run, and how they were found.

    Attributes:
        reading: the samples as read from the sources.
        facts: the result of decoding each, by sample id.
        prepared: the usable samples, and the refusals.
        fingerprint: of the usable samples.
    """

    train: list[BucketedSample]
    held_out: list[BucketedSample]
    reading: Reading
    facts: Mapping[str, ImageInfo | Refusal]
    prepared: Prepared
    fingerprint: Fingerprint

    @property
    def sample_ids(self) -> list[str]:
        """The ids of the training samples."""
        return [one.sample.sample_id for one in self.train]


def read_data(
    run: Run,
    *,
    folder: Path,
    multiple: int = 8,
    rehash: bool = False,
    inputs: TaskInputs = NO_INPUTS,
    missing: MissingCaption = "error",
) -> TrainingData:
    """Read, check and split the run's images.

    Args:
        folder: the cache's folder, which has an index of the images decoded before.
        multiple: with buckets, image sides are multiples of this many pixels.
        rehash: reread every image instead of using the index.
        inputs: the further images and texts that the task needs.
        missing: what to do with images that have no caption.

    Raises:
        UserError: too many images are bad, or none is left; or the run was started with other data.
    """
    settings, data = run.settings, run.settings.data
    if data.streaming:
        raise UserError(
            f"data.streaming = true in the program {settings.program}", "only `denoiser` can stream"
        )
    sources = data.all_sources()
    reading = read_sources(sources, inputs, missing=missing)
    repeated = any(source.repeats > 1 for source in sources)
    reading = without(reading, data.leave_out, repeated=repeated, file=data.leave_out_file)
    facts = survey_together(run, reading.samples, folder, rehash)
    prepared = prepare(reading, facts, data, multiple=multiple, seed=settings.seed)
    found = fingerprint_of(prepared, folder)
    run.use_data(found)
    if prepared.refusals and run.main:
        where = "`ldm data check`" if run.planning else "data_report.html"
        run.warn(f"{len(prepared.refusals)} of {prepared.num_found} samples are not used; see {where}")
    train, held_out = holdout_split(prepared.placed, data.holdout_fraction, settings.seed)
    if not train:
        raise UserError("no image is left to train on", "add images, or lower data.holdout_fraction")
    for name in ("every", "evaluate_every"):
        if getattr(settings.validation, name) and not held_out:
            raise UserError(
                f"data.holdout_fraction = {data.holdout_fraction} holds out none of {len(train)} images, but "
                f"validation.{name} needs some",
                "raise it, or add images",
            )
    return TrainingData(train, held_out, reading, facts, prepared, found)


def fingerprint_of(prepared: Prepared, folder: Path) -> Fingerprint:
    """The fingerprint of the usable samples; `folder` has the index with the hashes of their masks."""
    masks = mask_files(prepared.placed)
    return fingerprint(prepared.placed, content_hashes(masks, ImageIndex(folder)) if masks else {})


def survey_together(
    run: Run, samples: Sequence[Sample], folder: Path, rehash: bool
) -> Mapping[str, ImageInfo | Refusal]:
    """Each process decodes its share and adds it to the index; then all read the whole index."""
    image_index = ImageIndex(folder, rehash=rehash)
    processes = run.processes
    try:
        with run.progress("reading images", "image", len(samples)) as on_progress:
            known = survey(
                samples,
                image_index,
                rank=processes.rank,
                num_processes=processes.num_processes,
                on_progress=lambda done, total: on_progress(done * len(samples) // total),
            )
    finally:
        image_index.save()  # what was read before a signal is kept, too
    if processes.num_processes == 1:
        return known
    processes.barrier()
    return survey(samples, ImageIndex(folder))


def check_image_size(data: DataSettings, multiple: int, hint: str, least: int = 1) -> None:
    """Refuse a height or width that is not a multiple of `multiple` pixels, or smaller than `least`.

    Raises:
        UserError: names the setting.
    """
    for name, value in (("height", data.height), ("width", data.width)):
        if value % multiple or value < least:
            raise UserError(f"data.{name} = {value}", hint)


def write_data_report(
    folder: Path, data: TrainingData, text_encoder: ClipTextEncoder | None = None, num_chunks: int = 1
) -> None:
    """Write `data_report.json` and `data_report.html`: what happened to each sample.

    Args:
        text_encoder: counts the captions' tokens, of which `num_chunks` chunks are used.
    """
    report = make_report(
        data.reading,
        data.facts,
        data.prepared.placements(),
        text_encoder.count_tokens if text_encoder else None,
        text_encoder.tokens_read(num_chunks) if text_encoder else None,
    )
    held_out = {one.sample.sample_id for one in data.held_out}
    report = replace(
        report,
        fingerprint=data.fingerprint.hash,
        num_held_out=len(held_out),
        samples=[replace(outcome, held_out=outcome.sample_id in held_out) for outcome in report.samples],
    )
    write_report(report, folder, data.reading.samples)
