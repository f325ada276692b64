"""The run's samples: read, decoded once by all processes together, placed, split; and what became of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ldm.data.fingerprint import Fingerprint, fingerprint, mask_files
from ldm.data.image_index import ImageIndex
from ldm.data.prepare import BucketedSample, Prepared, holdout_split, prepare
from ldm.data.report.report import make_report, write_report
from ldm.data.sample import ImageInfo, Refusal, Sample
from ldm.data.sources.reading import Reading, read_sources
from ldm.data.survey import content_hashes, survey
from ldm.errors import UserError
from ldm.models.clip import ClipTextEncoder

from ..run.run import Run


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on, what it measures on, and all that was found.

    Attributes:
        reading: the samples as the sources gave them.
        facts: what decoding found out, by sample id.
        prepared: the samples that can be used, and the refusals.
        fingerprint: of the samples that can be used.
    """

    train: list[BucketedSample]
    held_out: list[BucketedSample]
    reading: Reading
    facts: Mapping[str, ImageInfo | Refusal]
    prepared: Prepared
    fingerprint: Fingerprint


def read_data(run: Run, *, folder: Path, multiple: int = 8, rehash: bool = False) -> TrainingData:
    """Read, check and split the run's images.

    Args:
        folder: the cache's, where what is known of each image is remembered.
        multiple: with buckets, image sides are multiples of this many pixels.
        rehash: read every image again, whatever is remembered.

    Raises:
        UserError: too many images are bad, or none is left; or the run was begun with others.
    """
    settings, data = run.settings, run.settings.data
    if data.streaming:
        raise UserError(f"data.streaming = true in the program {settings.program}", "only `denoiser` streams")
    reading = read_sources(data.all_sources())
    facts = survey_together(run, reading.samples, folder, rehash)
    prepared = prepare(reading, facts, data, multiple=multiple, seed=settings.seed)
    found = fingerprint_of(prepared, folder)
    run.go_on_with(found)
    if prepared.refusals and run.main:
        where = "`ldm data check`" if run.planning else "data_report.html"
        run.warn(f"{len(prepared.refusals)} of {prepared.num_found} samples are not used; {where} says why")
    train, held_out = holdout_split(prepared.placed, data.holdout_fraction, settings.seed)
    if not train:
        raise UserError("no image is left to train on", "add images, or lower data.holdout_fraction")
    if settings.validation.every and not held_out:
        raise UserError(
            f"data.holdout_fraction = {data.holdout_fraction} holds out none of {len(train)} images, which "
            "validation.every needs",
            "raise it, or add images",
        )
    return TrainingData(train, held_out, reading, facts, prepared, found)


def fingerprint_of(prepared: Prepared, folder: Path) -> Fingerprint:
    """The fingerprint of the samples that can be used; what is known of their masks is read from `folder`."""
    masks = mask_files(prepared.placed)
    return fingerprint(prepared.placed, content_hashes(masks, ImageIndex(folder)) if masks else {})


def survey_together(
    run: Run, samples: Sequence[Sample], folder: Path, rehash: bool
) -> Mapping[str, ImageInfo | Refusal]:
    """Each process decodes its share and notes it in the memo; then all read the whole memo."""
    image_index = ImageIndex(folder, rehash=rehash)
    rank, num_processes = run.accelerator.process_index, run.accelerator.num_processes
    with run.progress("reading images", "image", len(samples)) as on_progress:
        known = survey(
            samples,
            image_index,
            rank=rank,
            num_processes=num_processes,
            on_progress=lambda done, _: on_progress(done),
        )
    image_index.save()
    if num_processes == 1:
        return known
    run.accelerator.wait_for_everyone()
    return survey(samples, ImageIndex(folder))


def write_data_report(
    folder: Path, data: TrainingData, text_encoder: ClipTextEncoder | None = None, num_chunks: int = 1
) -> None:
    """`data_report.json` and `data_report.html`: the fate of each sample.

    Args:
        text_encoder: reads the captions, in `num_chunks` chunks.
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
        samples=[replace(fate, held_out=fate.sample_id in held_out) for fate in report.samples],
    )
    write_report(report, folder, data.reading.samples)
