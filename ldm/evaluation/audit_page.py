"""The audits as HTML pages: pairs of images beside each other."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.evaluation.autoencoder_audit import AutoencoderAudit
from ldm.evaluation.evaluation_job import EvaluationJob, Features
from ldm.evaluation.evaluation_page import Shown, render, shown
from ldm.evaluation.memorisation import Audit
from ldm.io.files import write_bytes
from ldm.io.images import tensor_to_images
from ldm.io.messages import count

MAX_SHOWN = 60
Pair = tuple[Shown, Shown]


def write_memorisation_page(
    path: Path, facts: Mapping[str, Any], found: Audit, kept: Features, job: EvaluationJob
) -> Path:
    """Each generated image beside the nearest training image, the most suspicious first; returns the path."""
    text = (
        f"{facts['num_copies']} of {facts['num_images']} generated images are copies of a training image: "
        f"{facts['share']:.3f} [{facts['low']:.3f}, {facts['high']:.3f}]. The thresholds find "
        f"{facts['planted_found']:.3f} of {facts['num_planted']} planted copies, and would take "
        f"{facts['false_alarms']:.4f} of the training images for copies of others."
    )
    pairs = list(_nearest_pairs(found, kept, job))
    page = render(
        "audit.html.jinja",
        title=f"Copies of training images by {facts['model']}",
        text=text,
        numbers={},
        heading="Each generated image and the training image nearest to it",
        pairs=pairs,
    )
    write_bytes(path, page.encode())
    return path


def _nearest_pairs(found: Audit, kept: Features, job: EvaluationJob) -> Iterator[Pair]:
    generated, training = kept.generated["thumbnails"], kept.reference["thumbnails"]
    for i in found.order()[:MAX_SHOWN]:
        nearest = int(found.features.index[i])
        verdict = "copy" if bool(found.is_copy[i]) else "no copy"
        distances = f"{float(found.features.distance[i]):.3g}, {count(int(found.hashes.distance[i]), 'bit')}"
        yield (
            shown(Image.fromarray(generated[i].numpy()), job.prompts[i], f"{verdict}: {distances}"),
            shown(Image.fromarray(training[nearest].numpy()), job.sample_ids[nearest]),
        )


def write_autoencoder_page(path: Path, facts: Mapping[str, Any], found: AutoencoderAudit) -> Path:
    """The numbers, and the worst originals beside their reconstructions; returns the path."""
    text = (
        f"{facts['num_images']} images of {found.size[1]} x {found.size[0]} pixels, encoded and decoded "
        f"({', '.join(f'{number} {kind}' for kind, number in found.kinds.items())}). Shifts are in "
        "levels of 255. Detail is the power of the reconstruction divided by that of the original, in octaves from "
        "coarse to fine: below 1 it is lost, above 1 it is made up."
    )
    pairs = []
    for sample_id, original, reconstruction in found.shown:
        first, second = (tensor_to_images(each[None])[0] for each in (original, reconstruction))
        pairs.append((shown(first, sample_id), shown(second, "reconstructed")))
    page = render(
        "audit.html.jinja",
        title=f"Autoencoder of {facts['model']}",
        text=text,
        numbers=facts["numbers"],
        heading="The worst images and what is left of them",
        pairs=pairs,
    )
    write_bytes(path, page.encode())
    return path
